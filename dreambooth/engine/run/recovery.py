"""How a run goes on from its last state after too little memory or divergence: which settings it changes for that.

Nothing here changes what is learned except the learning rate, which is halved after divergence.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from dreambooth.core.errors import Problem, UserError
from dreambooth.core.memory import footprint, planner
from dreambooth.core.models import anatomy, checkpoint
from dreambooth.core.models.anatomy import Anatomy
from dreambooth.core.settings import Settings
from dreambooth.core.settings.conflicts.of_optimizers import PRODIGY_LEAST_RATE, rates
from dreambooth.core.values import plain

if TYPE_CHECKING:
    from dreambooth.engine.work import Work

LOADING, TRAINING = "loading the model", "training"  # phases of a job, beside the two that draw
MAX_DIVERGENCES = 3  # after which a run goes back to its last state
_DRAWING = ("class pictures", "previews")
_TRAIN_LESS = (
    "begin a new run with a smaller general.resolution, a LoRA of a smaller rank, an 8-bit optimizer, "
    "memory.unet_weights streamed or int8, or what Performance chooses (the command is `performance`)"
)
_DRAW_LESS = "Draw fewer pictures at a time, or smaller ones"
_CLOSE = "close other programs that use the memory"

Changes = dict[str, Any]


@dataclass(frozen=True)
class MemoryEstimate:
    """How many bytes of the device training a model is known to take, with settings that are still to be chosen."""

    model: Anatomy
    family: str
    area: int  # pixels of an image
    has_own_memory: bool  # a GPU; streamed weights of an Apple GPU stay in the memory that it shares with the CPU

    @classmethod
    def of(cls, work: Work) -> MemoryEstimate:
        from dreambooth.engine import hardware

        model = anatomy.of(checkpoint.read_header(work.project.source))
        return cls(model, work.project.about["family"], work.size**2, hardware.here().type == "cuda")

    def bytes(self, settings: Settings, phase: str) -> int:
        """About how many bytes of the device a phase, LOADING or TRAINING, takes."""
        copies = 0
        if not self.has_own_memory and settings.memory.unet_weights == "streamed":
            settings = planner.with_changes(settings, {"memory.unet_weights": "whole"})
            copies = 4 * self.model.largest_block  # beside the weights, in the same memory
        if phase == LOADING:
            return copies + footprint.needs(settings, self.model, self.family, self.area).weights
        return copies + footprint.training_bytes(settings, self.model, self.family, self.area)


def next_memory_saving(
    settings: Settings, phase: str, batch: int = 0, estimate: MemoryEstimate | None = None
) -> tuple[Changes, str] | None:
    """The next changes that make a phase take less memory, and their name; None where nothing is left to change.

    `batch` is how many images were drawn at a time, for phases that draw, where the settings leave that to the free
    memory. Without an `estimate` only savings that need none are chosen from.
    """
    if phase in (TRAINING, "previews") and settings.tuning.cuda_graphs:  # nothing else can use the memory of graphs
        return {"tuning.cuda_graphs": False}, "no CUDA graphs"
    if phase in _DRAWING:
        return _next_drawing_saving(settings, batch)
    if phase == TRAINING and settings.tuning.trace_steps and settings.batching.gradient_accumulation_steps > 1:
        return {"tuning.trace_steps": False}, "steps that are not traced, whose gradients need no room of their own"
    if estimate is None or phase not in (LOADING, TRAINING):
        return None
    needed = partial(estimate.bytes, phase=phase)
    saving = planner.next_saving(settings, needed, must_be_counted=phase == LOADING)
    if saving or phase == LOADING or not settings.tuning.trace_steps:
        return saving
    # Half batches are accumulated, which takes less memory only if traced steps keep no second set of gradients.
    untraced = {"tuning.trace_steps": False}
    saving = planner.next_saving(planner.with_changes(settings, untraced), needed)
    return saving and ({**untraced, **saving[0]}, f"{saving[1]}, not traced")


def _next_drawing_saving(settings: Settings, batch: int) -> tuple[Changes, str] | None:
    batch = settings.batching.class_batch_size or batch
    if batch > 1:
        return {"batching.class_batch_size": batch // 2}, f"{batch // 2} pictures drawn at a time"
    if settings.memory.vae_decoding != "tiled":
        return {"memory.vae_decoding": "tiled"}, "pictures decoded in tiles"
    return None


def after_out_of_memory(
    settings: Settings, phase: str, requested: str, batch: int = 0, estimate: MemoryEstimate | None = None
) -> tuple[Changes, Problem]:
    """The changes with which a run goes on after too little memory in a phase, and the warning that says so.

    `requested` is how much memory was asked for, as a part of a sentence; `batch` and `estimate` are those of
    `next_memory_saving`. Raises UserError if nothing is left to change, or if the settings ask the run to stop.
    """
    shortage = _shortage(phase, requested)
    saving = next_memory_saving(settings, phase, batch, estimate)
    if saving is None:
        train_less = "begin a new run with a smaller general.resolution" if settings.is_embedding else _TRAIN_LESS
        do = f"{_resume_or(train_less)}; what was saved before is kept."
        raise UserError(Problem(shortage, "general.resolution", do))
    changes, name = saving
    values = ", ".join(f"{key} {plain(value)}" for key, value in changes.items())
    if settings.memory.on_out_of_memory == "stop":
        do = f"Go on with {name}: resume the run with {values}. What was saved before is kept."
        raise UserError(Problem(shortage, "memory.on_out_of_memory", do))
    message = f"{shortage} The run goes on from its last state with {name} ({values})."
    return changes, Problem(message, next(iter(changes)))


def after_divergence(settings: Settings, message: str, divergences: int) -> tuple[Changes, Problem]:
    """The changes with which a run goes on after it has diverged, and the warning that says so.

    `message` says what happened; `divergences` counts those of this run before it. Raises UserError if the learning
    rate cannot be halved once more.
    """
    now = rates(settings)
    keys, factor = " and ".join(now), max(now.values())
    if settings.optimizer.name == "prodigy" and factor / 2 < PRODIGY_LEAST_RATE:
        raise UserError(
            f"{message} {keys} cannot be lowered further: it is {factor:g}, and prodigy takes no factor below "
            f"{PRODIGY_LEAST_RATE:g}; what was saved before is sound and kept. Look at the pictures that were named, "
            "or set tuning.mixed_precision to no."
        )
    if divergences >= MAX_DIVERGENCES:
        raise UserError(
            f"{message} It has gone back {divergences} times to no avail; what was saved before is sound and kept. "
            f"Look at the pictures that were named, lower {keys}, or set tuning.mixed_precision to no."
        )
    changes = {key: rate / 2 for key, rate in now.items()}
    goes_on = f"{message} The run goes back to its last state and on from there with half the learning rate."
    return changes, Problem(goes_on, next(iter(now)))


def without_retry(requested: str, *, draws: bool) -> Problem:
    """What to say of too little memory where nothing is tried again. `draws` is true for a job that draws images."""
    do = f"{_DRAW_LESS}, or {_CLOSE}" if draws else _resume_or(_TRAIN_LESS)
    return Problem(_shortage("", requested), do=f"{do}; what was saved before is kept.")


def _resume_or(train_less: str) -> str:
    """What to do in general; settings that train less are for a new run alone."""
    return f"{_CLOSE[0].upper()}{_CLOSE[1:]} and resume, or {train_less}"


def _shortage(phase: str, requested: str) -> str:
    doing = {"": "preparing", "previews": "drawing previews"}.get(phase, phase)
    return f"The memory was not enough while {doing}: {requested}."
