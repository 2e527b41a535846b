"""Speed and memory of training, each measurement a process of its own, and beside ours the trainers of others on the
same pictures for as many steps.

Without a GPU the models are the bundled miniatures; with `large`, full-size models of random weights. Who is
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
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dreambooth.core import project
from dreambooth.core.errors import UserError
from dreambooth.core.job_list import new_run
from dreambooth.core.layout import MINIATURES, PROJECT, SUBJECT_PICTURES
from dreambooth.core.project import Folders
from dreambooth.core.run import Job
from dreambooth.core.settings import parse
from dreambooth.engine.bench import cases, peer_diffusers, peers
from dreambooth.engine.bench.cases import Case
from dreambooth.engine.bench.peers import Peer
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


def measure(job: Job) -> dict[str, Any]:
    """Measures in the folder that job.json names, and removes it. Returns a row for each case and who did it.

    Raises UserError, before anything is measured, for a peer that cannot be run or can do none of the cases.
    """
    asked = job.read()
    folder, others = Path(asked["out"]), peers.given(asked)
    found = _cases(asked, others)
    try:
        return {"rows": _rows(job, folder, found, others, asked), "versions": versions()}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _cases(asked: dict[str, Any], others: Sequence[Peer]) -> list[Case]:
    """Those that are asked for; beside peers, those that one of them can do."""
    found, large = cases.asked_for(asked), bool(asked.get("large"))
    for peer in others:
        peers.check(peer, found, large=large)
    return [case for case in found if not others or any(peer.trains(case, large=large) for peer in others)]


def _rows(job: Job, folder: Path, some: list[Case], others: Sequence[Peer], asked: Any) -> list[dict[str, Any]]:
    bench, turns = Bench(job, folder, asked), int(asked.get("repeats") or (3 if others else 1))
    work = [peers.at_work(case, others, large=bench.large) for case in some]
    rows, done, total = [], 0, turns * sum(map(len, work))
    for each in work:
        taken: list[list[dict[str, Any]]] = [[] for _ in each]
        for _ in range(turns):
            for (case, peer), found in zip(each, taken):
                if asked_to_end(job):
                    raise UserError("Stopped as asked; nothing was measured to the end.")
                job.report("stage", name=f"{_name(peer)}: {case.title}", done=done, total=total)
                found.append(bench.peer(case, peer) if peer else bench.ours(case))
                done += 1
        rows += [_row(case, _name(peer), found) for (case, peer), found in zip(each, taken)]
    return rows


def _name(peer: Peer | None) -> str:
    return peer.name if peer else "ours"


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
        "trained": taken[0]["trained"],
        "versions": taken[0].get("versions", {}),
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
        self.large = bool(asked.get("large"))
        self.models = Folders(folder / "models")
        self.pictures = folder / "pictures"  # alone, without captions: others open every file
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
                "lora.layers": case.layers,
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

    def peer(
        self, case: Case, peer: Peer, by: str = "peer_run", more: Sequence[str] = (), **about: Any
    ) -> dict[str, Any]:
        """A training of a peer's, measured by a module beside this one; `more` are arguments of its script."""
        work = self.folder / f"{peer.name}-work"
        model = self.peer_model(case.family) if peer.reads_folder else self.source(case.family)
        told = peer.told(case, model, self.pictures, PROMPT, work)
        try:
            return self.measured(by, case, **{**told, "arguments": [*told["arguments"], *more], **about})
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def peer_model(self, family: str) -> Path:
        """The model as diffusers' scripts read it."""
        model = self.folder / f"{family}-folder"
        if not model.exists():
            peer_diffusers.write_model(model, self.source(family))
        return model

    def source(self, family: str) -> Path:
        if not self.large:
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
        command = [about.get("python", sys.executable), "-m", f"dreambooth.engine.bench.{module}", str(told)]
        with open(log, "w", encoding="utf-8") as file:
            variables = {**os.environ, "OMP_NUM_THREADS": "1", **self.environment}
            if "python" in about:  # whose packages are not ours
                variables.pop("PYTHONPATH", None)
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
