"""What saving a state costs: beside a plain `torch.save` of the same tensors, and in time that the training loses.

A state is more than a plain save: it is copied first so that training goes on, hashed, synced to the disk, read back
and renamed. Plain here is `torch.save` and a sync, without which the time would be that of the system's memory.
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState

from dreambooth.core import job_list, project
from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import MINIATURE, SUBJECT_PICTURES
from dreambooth.core.job_folder import Job
from dreambooth.core.project import Folders
from dreambooth.core.settings import parse
from dreambooth.engine import worker
from dreambooth.engine.process.listener import asked_to_end
from dreambooth.engine.training import state, state_writer

REPEATS = 5
# Values that are trained; a state holds each with the two that AdamW remembers of it, in full precision.
SIZES = {"LoRA, rank 16, SD 1": 3_200_000, "LoRA, rank 128, SD 1": 25_500_000, "a tenth of SD 1's UNet": 86_000_000}
_TENSORS = 200
_STEPS, _EVERY = 40, 5
_TRAININGS = 3  # of each kind
_SHARED: dict[str, Any] = {
    "concepts.0.instance_data_dir": str(SUBJECT_PICTURES),
    "concepts.0.instance_prompt": "a photo of sks star",
    "previews.count": 0,
    "intervals.max_train_steps": _STEPS,
    "intervals.save_state_every": 0,
    "batching.train_batch_size": 4,
}
_METHODS = {"LoRA": {"general.method": "lora"}, "full": {"general.method": "full", "saving.half_model": False}}


def measure(job: Job) -> dict[str, Any]:
    """Measures in the folder that job.json names, and removes it. Returns a row for each size and for each method."""
    folder = Path(job.read()["out"])
    total = len(SIZES) + len(_METHODS)
    try:
        folder.mkdir(parents=True)
        saves = []
        for name, values in SIZES.items():
            _stage(job, name, len(saves), total)
            saves.append({"state": name, **_saving(folder, values)})
        trainings = []
        for name, settings in _METHODS.items():
            _stage(job, f"training, {name}", len(SIZES) + len(trainings), total)
            trainings.append({"method": name, **_training(folder, settings)})
        return {"saves": saves, "trainings": trainings}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _stage(job: Job, name: str, done: int, total: int) -> None:
    if asked_to_end(job):
        raise UserError("Stopped as asked; nothing was measured to the end.")
    job.report("stage", name=name, done=done, total=total)


def _saving(folder: Path, values: int) -> dict[str, Any]:
    """Medians, in seconds, of a plain save and of ours in turn; the first of each is left out."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    each = values // _TENSORS
    weights = {f"unet.{n}": torch.randn(each, device=device) for n in range(_TENSORS)}
    moments = {n: {"exp_avg": torch.randn(each, device=device), "exp_avg_sq": torch.rand(each, device=device)}
               for n in range(_TENSORS)}  # fmt: skip
    content = {"weights": weights, "rest": {"optimizer": {"state": moments}}}
    plain, written = list[float](), list[state_writer.Written]()
    writer = state_writer.Writer(folder / "state", lambda steps: set(steps[-1:]))
    for step in range(REPEATS + 1):
        began = time.perf_counter()
        with open(folder / "plain.pt", "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        plain.append(time.perf_counter() - began)
        writer.begin(step, content, written.append)
        writer.finish(written.append)
    if problem := next((one.problem for one in written if one.problem), ""):
        raise UserError(problem)
    shutil.rmtree(folder / "state")
    return {
        "bytes": state.content_bytes(content),
        "plain_seconds": statistics.median(plain[1:]),
        "seconds": statistics.median(one.seconds for one in written[1:]),
        "stalled_seconds": statistics.median(one.stalled for one in written[1:]),
    }


def _training(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The miniature's training with a state every few steps and without any, in turn; the quickest of each."""
    made = project.create(Folders(folder / "models"), f"star-{settings['general.method']}", MINIATURE)
    seconds: dict[int, list[float]] = {0: [], _EVERY: []}
    stalls: list[float] = []
    for _ in range(_TRAININGS):
        for every, taken in seconds.items():
            chosen = {**_SHARED, **settings, "intervals.save_state_every_steps": every}
            job = job_list.new_run(Folders(folder / "models"), made, parse(chosen))
            AcceleratorState._reset_state(reset_partial_state=True)
            worker.run(job)
            events = job.events()[0]
            last = next(event for event in reversed(events) if event["event"] == "step")
            taken.append(last["step"] / last["steps_per_second"])
            stalls += [event["stalled"] for event in events if event["event"] == "state"]
            shutil.rmtree(job.folder)
    saves = (_STEPS - 1) // _EVERY
    without, with_saves = (min(taken) for taken in seconds.values())
    return {
        "steps": _STEPS,
        "saves": saves,
        "step_seconds": without / _STEPS,
        "stalled_seconds": statistics.median(stalls),
        "lost_seconds": (with_saves - without) / saves,
    }
