"""Speed and memory of training: families x methods x batches x resolutions, each measurement a process of its own, and
beside them diffusers' own scripts on the same pictures for as many steps.

Without a GPU the models are the bundled miniatures; with one and `large`, full-size models of random weights. Who is
compared takes turns; the figures are medians over the turns.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dreambooth.core import project
from dreambooth.core.errors import UserError
from dreambooth.core.layout import MINIATURES, PROJECT, SUBJECT_PICTURES
from dreambooth.core.project import Folders
from dreambooth.core.run import Job, new_run
from dreambooth.core.settings import parse
from dreambooth.engine.bench import peers
from dreambooth.engine.bench.versions import versions
from dreambooth.engine.process.listener import asked_to_end

PROMPT = "a photo of sks star"
PEAK_TFLOPS = {  # dense bf16 of the cards, without sparsity, as their makers say
    "H200": 989,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
    "4090": 165,
    "3090": 71,
    "A10": 125,
    "T4": 65,
}


@dataclass(frozen=True)
class Case:
    """One combination that is measured."""

    family: str
    method: str  # lora or full
    batch: int
    resolution: int  # pixels
    steps: int
    rank: int = 4

    @property
    def title(self) -> str:
        return f"{self.family} {self.method} batch {self.batch} at {self.resolution}"


SMALL = [
    *(Case(family, method, 1, 128, 60) for family in MINIATURES for method in ("full", "lora")),
    *(Case("sd1", method, 4, 128, 30) for method in ("full", "lora")),
    *(Case("sd1", method, 1, 256, 30) for method in ("full", "lora")),
]
LARGE = [
    *(Case("sd1", method, batch, 512, 40) for method in ("full", "lora") for batch in (1, 4)),
    *(Case("sdxl", method, batch, 1024, 30) for method in ("full", "lora") for batch in (1, 4)),
]


def measure(job: Job) -> dict[str, Any]:
    """Measures in the folder that job.json names, and removes it. Returns a row for each case and who did it.

    Raises UserError for a peer's folder that does not hold its scripts, before anything is measured.
    """
    asked = job.read()
    folder, peer = Path(asked["out"]), asked.get("peer", "")
    scripts = peers.scripts(Path(peer)) if peer else None
    cases = LARGE if asked.get("large") else SMALL
    if scripts:
        cases = [case for case in cases if case.family == "sd1"]
    try:
        return {"rows": _rows(job, folder, cases, scripts, asked), "versions": versions()}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _rows(job: Job, folder: Path, cases: list[Case], scripts: peers.Scripts | None, asked: Any) -> list[dict[str, Any]]:
    bench, turns = Bench(job, folder, asked), int(asked.get("repeats") or (3 if scripts else 1))
    who = ["ours", "diffusers"] if scripts else ["ours"]
    rows, done = [], 0
    for case in cases:
        taken: dict[str, list[dict[str, Any]]] = {one: [] for one in who}
        for _ in range(turns):
            for one in who:
                if asked_to_end(job):
                    raise UserError("Stopped as asked; nothing was measured to the end.")
                job.report("stage", name=f"{one}: {case.title}", done=done, total=len(cases) * turns * len(who))
                taken[one].append(bench.ours(case) if one == "ours" else bench.peer(case, scripts))
                done += 1
        rows += [_row(case, one, taken[one]) for one in who]
    return rows


def _row(case: Case, who: str, taken: list[dict[str, Any]]) -> dict[str, Any]:
    def middle(key: str) -> float:
        return statistics.median(one[key] for one in taken)

    step = middle("step_seconds")
    row = {
        **asdict(case),
        "who": who,
        "step_seconds": step,
        "images_per_second": case.batch / step,
        "first_step_seconds": middle("first_step_seconds"),
        "step_cpu_seconds": middle("step_cpu_seconds"),
        "first_step_cpu_seconds": middle("first_step_cpu_seconds"),
        "overhead_seconds": statistics.median(one["mean_step_seconds"] - one["model_seconds"] for one in taken),
        "peak_bytes": int(middle("peak_bytes")),
        "device_peak_bytes": int(middle("device_peak_bytes")),
        "flops": taken[0]["flops"],
        "losses": taken[0]["losses"],
        "warnings": taken[0].get("warnings", []),
        "share_of_peak": None,
    }
    if peak := _peak_flops():
        row["share_of_peak"] = taken[0]["flops"] / step / peak
    return row


class Bench:
    """The folder in which the measured processes work."""

    def __init__(self, job: Job, folder: Path, asked: dict[str, Any]) -> None:
        self.job, self.folder, self.asked = job, folder, asked
        self.models = Folders(folder / "models")
        self.pictures = folder / "pictures"  # alone, without captions: diffusers' scripts open every file
        self.pictures.mkdir(parents=True)
        for path in SUBJECT_PICTURES.glob("*.png"):
            shutil.copy(path, self.pictures)
        self.count = 0
        self.environment: dict[str, str] = {}  # variables that the measured processes have beside ours

    def ours(self, case: Case, by: str = "own_run", changes: dict[str, Any] | None = None) -> dict[str, Any]:
        """A training of ours, measured by a module beside this one; `changes` are to its settings."""
        settings = parse(
            {
                "general.method": case.method,
                "general.resolution": case.resolution,
                "concepts.0.instance_data_dir": str(self.pictures),
                "concepts.0.instance_prompt": PROMPT,
                "intervals.max_train_steps": case.steps,
                "intervals.save_preview_every": 0,
                "intervals.save_state_every": 0,
                "batching.train_batch_size": case.batch,
                "lora.rank": case.rank,
                "lora.alpha": float(case.rank),
                "lora.layers": "attention",  # as diffusers' script
                "previews.count": 0,
                "pictures.buckets": False,
                **self.asked.get("settings", {}),
                **(changes or {}),
            }
        )
        made = project.create(self.models, f"m{self.count}", self.source(case.family))
        work = new_run(self.models, made, settings)
        found = {**self.measured(by, case, job=str(work.folder)), "warnings": work.warnings()}
        shutil.rmtree(made.folder)
        return found

    def peer(self, case: Case, scripts: peers.Scripts | None) -> dict[str, Any]:
        assert scripts is not None
        out = self.folder / "peer-output"
        arguments = peers.arguments(case, self.peer_model(case.family), self.pictures, PROMPT, out)
        found = self.measured("peer_run", case, script=str(scripts[case.method]), arguments=arguments)
        shutil.rmtree(out, ignore_errors=True)
        return found

    def peer_model(self, family: str) -> Path:
        """The model as diffusers' scripts read it."""
        model = self.folder / f"{family}-folder"
        if not model.exists():
            peers.write_model(model, self.source(family))
        return model

    def source(self, family: str) -> Path:
        if not self.asked.get("large"):
            return MINIATURES[family]
        path = self.folder / f"{family}.safetensors"
        if not path.exists():
            import torch

            from dreambooth.engine.bench.random_model import write_random

            write_random(path, family, torch.float16)
        return path

    def measured(self, module: str, case: Case, **about: Any) -> dict[str, Any]:
        """One process, timed from its start. Raises UserError with its last line if it fails."""
        self.count += 1
        told, out, log = (self.folder / f"{self.count}.{end}" for end in ("about.json", "out.json", "log"))
        told.write_text(json.dumps({**about, "out": str(out), "steps": case.steps, "started": time.time()}))
        command = [sys.executable, "-m", f"dreambooth.engine.bench.{module}", str(told)]
        with open(log, "w", encoding="utf-8") as file:
            variables = {**os.environ, "OMP_NUM_THREADS": "1", **self.environment}
            code = subprocess.call(command, cwd=PROJECT, env=variables, stdout=file, stderr=file)
        if code or not out.exists():
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [f"exit code {code}"]
            raise UserError(f"{case.title}: the measured process failed: {lines[-1]}")
        return dict(json.loads(out.read_text(encoding="utf-8")))


def _peak_flops() -> float:
    """What the card could do each second in bf16; 0 where it is not known."""
    import torch

    if not torch.cuda.is_available():
        return 0.0
    name = torch.cuda.get_device_name()
    return next((1e12 * peak for card, peak in PEAK_TFLOPS.items() if card in name), 0.0)
