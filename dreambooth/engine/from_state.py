"""What a run has learned by the step of a state, without going on with it: the weights that its result would have."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dreambooth.core import settings as settings_module
from dreambooth.core.errors import UserError
from dreambooth.core.job_folder import Job
from dreambooth.core.models import checkpoint
from dreambooth.core.project import Project
from dreambooth.core.run_length import Budget
from dreambooth.core.settings import Settings
from dreambooth.engine import families
from dreambooth.engine.checkpoints import lora
from dreambooth.engine.checkpoints.source import Source, open_model
from dreambooth.engine.families.model import Model
from dreambooth.engine.run import outputs, start_file
from dreambooth.engine.training import adapters, optimizers, state
from dreambooth.engine.training.adapters import Trained
from dreambooth.engine.training.ema import IN_STATE


@dataclass
class Learned:
    """A run as it was after a step. `model` has its LoRA's layers and its words; of a run of the whole model only
    `trained` has weights, as all others are in the checkpoint."""

    settings: Settings
    source: Source
    model: Model
    trained: Trained
    images: int  # of the subject seen by then


@contextlib.contextmanager
def as_file(project: Project, errand: Job, request: Mapping[str, Any]) -> Iterator[str]:
    """The file to draw or to export with, as long as it is needed: `weights`, or one that is made of the state that
    `run` and `from_step` name. Empty for the model before training."""
    if request.get("from_step") is None:
        yield request["weights"]
        return
    learned = read(project, Job(project.runs / f"{request['run']:04}"), request["from_step"])
    learned.settings.saving.half_model = False
    target = errand.folder / f"state-{request['run']}-{request['from_step']}.safetensors"
    outputs.write(target, project, learned.settings, learned.model, learned.source, learned.trained)
    del learned  # what is drawn with needs the memory
    try:
        yield str(target)
    finally:
        for path in errand.folder.glob(f"{target.stem}.*"):  # a .yaml may stand beside it
            with contextlib.suppress(OSError):  # Windows keeps what is still mapped; it goes with the folder
                path.unlink()


def read(project: Project, job: Job, step: int) -> Learned:
    """Raises UserError for a state that is gone or damaged, or that was learned from another checkpoint."""
    settings = settings_module.parse(job.settings())
    content = state.load(job.state, step)
    about = content["rest"]["about"]
    if about.get("source") != checkpoint.fingerprint(project.source):
        raise UserError(
            f"{project.source}: the checkpoint has changed since this run began; put the former one back, and try "
            "again."
        )
    source = open_model(project)
    if not settings.is_full:
        model = families.load(source, torch.bfloat16)  # only its layers' shapes count
        start = start_file.read(settings, source)
        trained = adapters.make_trainable(model, settings, lora.by_module(start.layers, model.parts), start.words)
    else:
        model, trained = families.skeleton(source), _of_the_whole_model(content["weights"])
    _fill(trained, settings, content, job.state / f"{step:09}")
    batching, images = settings.batching, int(about["length"])
    length = Budget(images, 1, batching.train_batch_size, batching.gradient_accumulation_steps)
    return Learned(settings, source, model, trained, length.images_seen(step))


def _of_the_whole_model(weights: dict[str, Tensor]) -> Trained:
    parts: dict[str, dict[str, nn.Parameter]] = {}
    for name, weight in weights.items():
        if not name.startswith(IN_STATE):
            part, _, key = name.partition(".")
            parts.setdefault(part, {})[key] = nn.Parameter(weight)
    return Trained(parts)


@torch.no_grad()
def _fill(trained: Trained, settings: Settings, content: dict[str, Any], place: Path) -> None:
    """Puts in the weights that the run would save: as `Session.shown` does, its last ones or their average. Raises
    UserError if the state, which lies at `place`, has others."""
    weights, own = content["weights"], trained.named()
    averaged = settings.tuning.use_ema and settings.saving.weights == "average"
    saved = {name: weights.get(f"{IN_STATE}{name}" if averaged else name) for name in own}
    if any(tensor is None or tensor.shape != own[name].shape for name, tensor in saved.items()):
        raise UserError(
            f"{place}: this state does not fit the settings of its run (method, rank or text encoder differ); take "
            "another."
        )
    for name, tensor in saved.items():
        own[name].copy_(tensor)
    if settings.optimizer.name == "adamw_schedule_free":
        optimizer = optimizers.make(trained, settings)
        optimizers.restore(optimizer, content["rest"]["optimizer"])
        optimizers.set_mode(optimizer, training=False)
