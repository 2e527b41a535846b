"""The planner's plans, run for real: each in a process of its own whose allocator has no more than that card would.

`python -m dreambooth bench plans` takes models of full size with random weights through whole runs of a few steps, with
previews and a result that is written. A row for each plan is appended to DIR/plans.jsonl as soon as it is known, and
what is there already is not run again, so that it can be done in pieces.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth.core import project
from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import MINIATURES, PROJECT, SUBJECT_PICTURES
from dreambooth.core.job_folder import Job
from dreambooth.core.job_list import new_run
from dreambooth.core.memory import headroom, planner
from dreambooth.core.memory.footprint import DRIVER_BYTES
from dreambooth.core.memory.planner import Plan
from dreambooth.core.models import anatomy, checkpoint
from dreambooth.core.models.families import FAMILIES, RESOLUTIONS
from dreambooth.core.project import Folders, Project
from dreambooth.core.settings import Settings, parse
from dreambooth.engine.process.listener import asked_to_end

STEPS = 6
TRACED_STEPS = 26  # so many that a step is written down and done again, which may take another amount of memory
OTHERS = 0.5  # of what the planner spares: what other programs take; the rest is for the gaps
MOST_SECONDS = 300.0  # of one plan
LEAST_SECONDS = 20.0  # that are left, for another plan to be begun
WORK = "dreambooth-bench"
LOG_LINES = 30  # that a row has of a run that broke
METHODS = ("lora", "full")
_OWN: dict[str, Any] = {
    "concepts.0.instance_data_dir": str(SUBJECT_PICTURES),
    "concepts.0.instance_prompt": "a photo of sks star",
    "intervals.save_preview_every": 0,
    "intervals.save_state_every": 0,
    "previews.steps": 2,
    "pictures.buckets": False,
    "memory.on_out_of_memory": "stop",  # else another plan would be run in this one's place
}
NO_CARD = (
    "bench plans: it needs an NVIDIA card, and PyTorch sees none here; `python -m dreambooth performance` tells what "
    "is planned."
)


@dataclass(frozen=True)
class Wanted:
    """A plan: of what, and for a card of so many bytes."""

    family: str
    method: str
    card_bytes: int

    @property
    def title(self) -> str:
        return f"{self.family} {self.method} on {self.card_bytes / 2**30:g} GB"

    @property
    def key(self) -> dict[str, Any]:
        return {"family": self.family, "method": self.method, "card_bytes": self.card_bytes}


def measure(job: Job) -> dict[str, Any]:
    """The plans that job.json asks for. Raises UserError without a card."""
    import torch

    if not torch.cuda.is_available():
        raise UserError(NO_CARD)
    return run(job, Full())


def run(job: Job, models: Models) -> dict[str, Any]:
    """Returns the rows that were asked for, and how many plans the time did not suffice for."""
    asked = job.read()
    wanted = [
        Wanted(family, method, card)
        for family in ([asked["family"]] if asked.get("family") else FAMILIES)
        for card in ([asked["card_bytes"]] if asked.get("card_bytes") else models.cards)
        for method in ([asked["method"]] if asked.get("method") else METHODS)
    ]
    until = time.monotonic() + 60 * asked["minutes"] if asked.get("minutes") else float("inf")
    rows = Rows(Path(asked["out"]))
    with working_folder(asked) as work:
        bench = Bench(work, models, rows)
        for done, one in enumerate(wanted):
            if asked_to_end(job) or until - time.monotonic() < LEAST_SECONDS:
                break
            job.report("stage", name=one.title, done=done, total=len(wanted))
            if not rows.of(one):
                rows.add(bench.row(one, until))
    found = [row for one in wanted if (row := rows.of(one))]
    return {"rows": found, "left": len(wanted) - len(found), "path": str(rows.path)}


class Rows:
    """What has been found, in a file that grows by a line for each."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "plans.jsonl"
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        self.found = [json.loads(line) for line in lines]

    def add(self, row: dict[str, Any]) -> None:
        self.found.append(row)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def of(self, one: Wanted) -> dict[str, Any] | None:
        """The newest row of a plan; none where the time was too short for it."""
        same = [row for row in self.found if {key: row[key] for key in one.key} == one.key]
        return same[-1] if same and same[-1]["ended"] != "out of time" else None

    def newest(self) -> list[dict[str, Any]]:
        """A row for each plan that is known."""
        wanted = {Wanted(row["family"], row["method"], row["card_bytes"]): None for row in self.found}
        return [row for one in wanted if (row := self.of(one))]

    def held(self, one: Wanted, changes: dict[str, Any]) -> dict[str, Any] | None:
        """A smaller card in which the very same settings have held."""
        for row in self.found:
            alike = (row["family"], row["method"], row["changes"]) == (one.family, one.method, changes)
            if alike and row["ended"] == "held" and row["card_bytes"] < one.card_bytes:
                return row
        return None


class Models:
    """What is planned for, and for which cards."""

    cards: tuple[int, ...] = planner.CARDS
    steps = TRACED_STEPS  # of each run
    simulated = False

    def source(self, family: str, work: Path) -> Path:
        """The model's file, made in `work` if it is not there yet."""
        raise NotImplementedError

    def plan(self, settings: Settings, family: str, card_bytes: int) -> Plan:
        raise NotImplementedError

    def side(self, family: str) -> int:
        """Of the pictures, in pixels."""
        return RESOLUTIONS[family]


class Full(Models):
    """Models of full size with random weights, at the size of pictures that each was made for."""

    def source(self, family: str, work: Path) -> Path:
        path = work / f"{family}.safetensors"
        if not path.exists():
            import torch

            from dreambooth.engine.bench.random_model import write_random

            write_random(path, family, torch.float16)
        return path

    def plan(self, settings: Settings, family: str, card_bytes: int) -> Plan:
        return planner.for_family(settings, family, card_bytes)


class Small(Models):
    """The miniatures, for a card that is simulated on the CPU: so little of a card that a plan must save."""

    simulated = True
    steps = STEPS
    cards = (800 * 2**20, 2**30)

    def side(self, family: str) -> int:
        return 64

    def source(self, family: str, work: Path) -> Path:
        return MINIATURES[family]

    def plan(self, settings: Settings, family: str, card_bytes: int) -> Plan:
        header = checkpoint.read_header(MINIATURES[family])
        return planner.plan(settings, anatomy.of(header), family, settings.general.resolution**2, card_bytes)


class Bench:
    """The folder in which runs are tried, one at a time."""

    def __init__(self, work: Path, models: Models, rows: Rows) -> None:
        self.work, self.models, self.rows = work, models, rows
        shutil.rmtree(work / "models", ignore_errors=True)
        self.folders = Folders(work / "models")
        self.count = 0

    def row(self, one: Wanted, until: float) -> dict[str, Any]:
        """One plan, tried inside its card; one that does not hold there is tried once more without a limit, which
        tells what it would take."""
        own = {"general.method": one.method, "general.resolution": self.models.side(one.family)}
        settings = parse({**_OWN, **own})
        plan = self.models.plan(settings, one.family, one.card_bytes)
        row = {**one.key, "changes": plan.changes, "planned": _planned(plan), "fits": plan.fits}
        if not plan.fits:
            return {**row, "ended": "not planned", "why": plan.why}
        if same := self.rows.held(one, plan.changes):
            return {**same, **row, "as_on": same["card_bytes"]}
        chosen = planner.with_changes(settings, plan.changes)
        chosen = planner.with_changes(chosen, {"intervals.max_train_steps": self.models.steps})
        tried = self.tried(one, chosen, until, capped=True)
        if tried["ended"] == "out of memory" and until - time.monotonic() > LEAST_SECONDS:
            tried["without_limit"] = self.tried(one, chosen, until, capped=False)
        return {**row, **tried}

    def tried(self, one: Wanted, settings: Settings, until: float, *, capped: bool) -> dict[str, Any]:
        """A run with what it needed. `ended` is held, out of memory, out of time, or what the run said."""
        made = project.create(self.folders, f"m{self.count}", self.models.source(one.family, self.work))
        self.count += 1
        try:
            job = new_run(self.folders, made, settings)
            seconds = max(1.0, min(MOST_SECONDS, until - time.monotonic()))
            return self._in_a_process(job, made, one, seconds, capped=capped)
        finally:
            for folder in (made.folder, self.folders.checkpoints, self.folders.loras):
                shutil.rmtree(folder, ignore_errors=True)

    def _in_a_process(self, job: Job, made: Project, one: Wanted, seconds: float, *, capped: bool) -> dict[str, Any]:
        told, out, log = (made.folder / name for name in ("about.json", "out.json", "plan.log"))
        spared = one.card_bytes - headroom.usable(one.card_bytes)
        cap = int(one.card_bytes - OTHERS * spared) - DRIVER_BYTES
        others = 0 if self.models.simulated else taken_by_others()
        about = {"job": str(job.folder), "out": str(out), "cap_bytes": cap if capped else 0}
        told.write_text(json.dumps({**about, "simulated": self.models.simulated}), encoding="utf-8")
        command = [sys.executable, "-m", "dreambooth.engine.bench.plans_run", str(told)]
        began = time.monotonic()
        with open(log, "w", encoding="utf-8") as file:
            try:
                subprocess.run(command, cwd=PROJECT, stdout=file, stderr=file, timeout=seconds, check=False)
            except subprocess.TimeoutExpired:
                return {"ended": "out of time", "seconds": round(seconds, 1)}
        ended = {**_ended(job, log), "seconds": round(time.monotonic() - began, 1), "warnings": job.warnings()}
        if not out.exists():
            return ended
        found = json.loads(out.read_text(encoding="utf-8"))
        context = found["outside_bytes"] - others
        measured = {**found, "cap_bytes": cap, "context_bytes": context, "others_bytes": others}
        measured["peak_bytes"] = found["allocated_bytes"] + context
        wanted = job.settings()["intervals.max_train_steps"]
        if ended["ended"] == "held" and found["steps"] != wanted:
            ended["ended"] = f"it took {found['steps']} steps of {wanted}"
        if capped and ended["ended"] == "held" and cap + DRIVER_BYTES < found["reserved_bytes"] + context:
            ended["ended"] = "out of memory"  # what is outside the allocator takes more than was left for it
        return {**measured, **ended}


def taken_by_others() -> int:
    """What of the card is taken before a process of ours begins, as the driver's own tool says; 0 where it is not
    there."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return 0
    return int(said[0]) * 2**20 if said and said[0].isdigit() else 0


def _planned(plan: Plan) -> dict[str, int]:
    return {**vars(plan.needs), "total": plan.needs.total}


def said(job: Job) -> list[str]:
    """What a run told of what went wrong, the last at the end."""
    return [text for event in job.events()[0] for text in (event.get("text"), *event.get("problems", ())) if text]


def _ended(job: Job, log: Path) -> dict[str, Any]:
    """How a run ended, in its own words, with the end of its log where nothing else explains it."""
    events, told = job.events()[0], said(job)
    if any("memory was not enough" in text for text in told):
        return {"ended": "out of memory"}
    last = events[-1]["event"] if events else ""
    if last == "done":
        return {"ended": "held"}
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    why = next(iter([*reversed(told), *reversed(lines)]), f"it ended as {last or 'nothing'}")
    return {"ended": why, "log": lines[-LOG_LINES:]}


@contextmanager
def working_folder(asked: dict[str, Any]) -> Iterator[Path]:
    """Where models are made: the folder that was named, which stays, or one that does not."""
    if asked.get("work"):
        folder = Path(asked["work"])
        # Of its own, as what was left in it by one that was cut off is removed.
        folder = folder if folder.name == WORK else folder / WORK
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="dreambooth-plans-") as made:
        yield Path(made)
