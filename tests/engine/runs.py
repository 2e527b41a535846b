"""Short runs of very small models, in this process: what the tests of options and of faults train with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from dreambooth.core import project
from dreambooth.core.install_paths import SUBJECT_PICTURES
from dreambooth.core.job_folder import Job
from dreambooth.core.project import Folders, Project
from dreambooth.core.settings import parse
from dreambooth.engine import export, worker
from dreambooth.service import exporting, launcher
from tests.engine import tiny

SHORT: dict[str, Any] = {
    "concepts.0.instance_data_dir": str(SUBJECT_PICTURES),  # five pictures
    "concepts.0.instance_prompt": "a photo of sks star",
    "general.method": "full",
    "intervals.num_train_epochs": 1,
    "learning.learning_rate": 1e-3,
    "learning.text_encoder_learning_rate": 1e-3,
    "batching.train_batch_size": 5,
    "tuning.mixed_precision": "no",
    "previews.count": 0,
    "saving.half_model": False,
}
LORA = {"general.method": "lora", "learning.lora_learning_rate": 1e-2, "lora.rank": 2}


def tiny_project(folder: Path, kind: str = "sd1") -> Project:
    source = tiny.write_original(folder / f"{kind}.safetensors", kind)
    return project.create(Folders(folder / "models"), kind, source)


def folders(made: Project) -> Folders:
    return Folders(made.folder.parents[1])


def new_run(made: Project, **changes: Any) -> Job:
    return launcher.new_run(folders(made), made, parse({**SHORT, **changes}))


def train(made: Project, **changes: Any) -> Job:
    job = new_run(made, **changes)
    AcceleratorState._reset_state(reset_partial_state=True)  # each run has a process of its own
    assert worker.run(job) == "done"
    return job


def told(job: Job, event: str) -> list[dict[str, Any]]:
    """The events of one kind."""
    return [one for one in job.events()[0] if one["event"] == event]


def saved(job: Job) -> list[Path]:
    """What a run has written, without what it has removed for something better."""
    return [Path(event["path"]) for event in job.story().saved]


def output(job: Job) -> dict[str, torch.Tensor]:
    """The tensors of the last file that a run wrote."""
    return load_file(saved(job)[-1])


def exported(made: Project, **wanted: Any) -> dict[str, Any]:
    """Exports what is asked for, as page, API and command line do. Returns what the engine says of it."""
    fields = exporting.fields(made, wanted)
    return export.run(launcher.new_errand(folders(made), made, "export", parse({}), **fields))


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
