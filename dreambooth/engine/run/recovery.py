"""What is done when training fails for want of memory or runs away: which settings it goes on with from its last state.

Nothing here changes what is learned but the learning rate, and that only where training has diverged.
"""

from __future__ import annotations

import gc
import re
import sys
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

LOADING, TRAINING = "loading the model", "training"
MOST_TURNS_BACK = 3  # after divergence, in one run
_DRAWING = ("class pictures", "previews")
_TRAIN_LESS = (
    "begin a new run with a smaller general.resolution, a LoRA of a smaller rank, an 8-bit optimizer, "
    "memory.unet_weights streamed or int8, or what Performance chooses (the command is `performance`)"
)
_DRAW_LESS = "Draw fewer pictures at a time, or smaller ones"
_CLOSE = "close other programs that use the memory"
_SAID = "|".join(
    (
        "out of memory",
        "can't allocate memory",
        "Invalid buffer size",
        r"(CU|HIP)(BLAS|DNN|SOLVER)_STATUS_\w*(ALLOC_FAILED|ALLOCATION_FAILED|NOT_INITIALIZED)",
        "miopenStatusAllocFailed",
        "unable to find an engine",  # cuDNN tries all that it has, none of which got its room
        "Unable to find a valid cuDNN",
    )
)

Changes = dict[str, Any]


def is_out_of_memory(error: BaseException) -> bool:
    """PyTorch has a class of its own for a GPU, a RuntimeError; on a CPU it raises one that says so, for an Apple
    GPU another one where a single tensor is larger than Metal allows, and for what a card's libraries want beside its
    tensors one that names their code. One that cannot begin mostly lacks memory, too."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and bool(re.search(_SAID, str(error)))


def first_line(error: BaseException) -> str:
    """What a library's error says first, as a part of a sentence; of errors without words their kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")


def explained(error: BaseException, phase: str, *, draws: bool) -> Problem:
    """Too little memory where nothing is tried again: what happened, and what to do. `draws` is of a job that draws."""
    do = f"{_DRAW_LESS}, or {_CLOSE}" if draws else _resume_or(_TRAIN_LESS)
    return Problem(_said(phase, needed(error)), do=f"{do}; what was saved before is kept.")


def _resume_or(less: str) -> str:
    """What needs less is not for a run that has begun."""
    return f"{_CLOSE[0].upper()}{_CLOSE[1:]} and resume, or {less}"


def needed(error: BaseException) -> str:
    """How much was asked for, and how much there was, as far as PyTorch says."""
    text = str(error)
    if asked := re.search(r"[Tt]ried to allocate ([\d.]+ ?\w+)", text):
        wanted = _spelled(asked[1])
        if there := re.search(r"total capacity of ([\d.]+ \w+) of which ([\d.]+ \w+) is free", text):
            return f"{wanted} more were needed, {there[2]} of {there[1]} were free"
        if most := re.search(r"max allowed: ([\d.]+ \w+)", text):  # of an Apple GPU
            return f"{wanted} more were needed, of {most[1]} that PyTorch may take"
        return f"{wanted} more were needed"
    if asked := re.search(r"Invalid buffer size: ([\d.]+ \w+)", text):
        return f"{asked[1]} were needed in one piece"
    return "how much more was needed is not known"


def _spelled(amount: str) -> str:
    value, unit = re.fullmatch(r"([\d.]+) ?(\w+)", amount).groups()  # type: ignore[union-attr]
    return f"{float(value) / 2**20:,.1f} MiB" if unit == "bytes" else f"{value} {unit}"


@dataclass(frozen=True)
class Task:
    """What is trained, as far as its memory goes. `streams` is of a device that has no part in the computer's own."""

    model: Anatomy
    family: str
    area: int  # pixels of a picture
    streams: bool

    @classmethod
    def of(cls, work: Work) -> Task:
        from dreambooth.engine import hardware

        model = anatomy.of(checkpoint.read_header(work.project.source))
        return cls(model, work.project.about["family"], work.size**2, hardware.here().type == "cuda")

    def needed(self, settings: Settings, phase: str) -> int:
        """About how many bytes of the device a phase needs."""
        copies = 0
        if not self.streams and settings.memory.unet_weights == "streamed":
            settings = planner.with_changes(settings, {"memory.unet_weights": "whole"})
            copies = 4 * self.model.largest_block  # beside the weights, in the same memory
        if phase == LOADING:
            return copies + footprint.needs(settings, self.model, self.family, self.area).weights
        return copies + footprint.training_bytes(settings, self.model, self.family, self.area)


def smaller(settings: Settings, phase: str, together: int = 0, task: Task | None = None) -> tuple[Changes, str] | None:
    """The next thing that takes less memory in this phase, with its name; None where nothing is left. `together` is
    how many pictures were drawn at a time, where the settings leave that to the free memory; `task` is for what does
    not draw."""
    if phase in (TRAINING, "previews") and settings.tuning.cuda_graphs:  # whose room nothing else can use
        return {"tuning.cuda_graphs": False}, "no CUDA graphs"
    if phase in _DRAWING:
        return _smaller_drawing(settings, together)
    if phase == TRAINING and settings.tuning.trace_steps and settings.batching.gradient_accumulation_steps > 1:
        return {"tuning.trace_steps": False}, "steps that are not traced, whose gradients need no room of their own"
    if task is None or phase not in (LOADING, TRAINING):
        return None
    needed, untraced = partial(task.needed, phase=phase), {"tuning.trace_steps": False}
    step = planner.smaller(settings, needed, surely=phase == LOADING)
    if step or phase == LOADING or not settings.tuning.trace_steps:
        return step
    # Half batches take less only where their gradients have no room of their own.
    step = planner.smaller(planner.with_changes(settings, untraced), needed)
    return step and ({**untraced, **step[0]}, f"{step[1]}, not traced")


def _smaller_drawing(settings: Settings, together: int) -> tuple[Changes, str] | None:
    batch, decoding = settings.batching.class_batch_size or together, settings.memory.vae_decoding
    if batch > 1:
        return {"batching.class_batch_size": batch // 2}, f"{batch // 2} pictures drawn at a time"
    if decoding != "tiled":
        return {"memory.vae_decoding": "tiled"}, "pictures decoded in tiles"
    return None


def out_of_memory(
    settings: Settings, phase: str, said: str, together: int = 0, task: Task | None = None
) -> tuple[Changes, Problem]:
    """What to change so that it goes on, and what says so; `together` and `task` as for `smaller`.

    Raises UserError where nothing is left to change, or the person wants the run to stop.
    """
    begin = _said(phase, said)
    step = smaller(settings, phase, together, task)
    if step is None:
        less = "begin a new run with a smaller general.resolution" if settings.is_embedding else _TRAIN_LESS
        do = f"{_resume_or(less)}; what was saved before is kept."
        raise UserError(Problem(begin, "general.resolution", do))
    changes, name = step
    how = ", ".join(f"{key} {plain(value)}" for key, value in changes.items())
    if settings.memory.on_out_of_memory == "stop":
        do = f"Go on with {name}: resume the run with {how}. What was saved before is kept."
        raise UserError(Problem(begin, "memory.on_out_of_memory", do))
    return changes, Problem(f"{begin} The run goes on from its last state with {name} ({how}).", next(iter(changes)))


def diverged(settings: Settings, said: str, turns_back: int) -> tuple[Changes, Problem]:
    """The same for a training that has run away, `turns_back` times before."""
    now = rates(settings)
    keys, factor = " and ".join(now), max(now.values())
    if settings.optimizer.name == "prodigy" and factor / 2 < PRODIGY_LEAST_RATE:
        raise UserError(
            f"{said} {keys} cannot be lowered further: it is {factor:g}, and prodigy takes no factor below "
            f"{PRODIGY_LEAST_RATE:g}; what was saved before is sound and kept. Look at the pictures that were named, "
            "or set tuning.mixed_precision to no."
        )
    if turns_back >= MOST_TURNS_BACK:
        raise UserError(
            f"{said} It has gone back {turns_back} times to no avail; what was saved before is sound and kept. Look at "
            f"the pictures that were named, lower {keys}, or set tuning.mixed_precision to no."
        )
    changes = {key: rate / 2 for key, rate in now.items()}
    goes_on = f"{said} The run goes back to its last state and on from there with half the learning rate."
    return changes, Problem(goes_on, next(iter(now)))


def _said(phase: str, said: str) -> str:
    return f"The memory was not enough while {_doing(phase)}: {said}."


def _doing(phase: str) -> str:
    return {"previews": "drawing previews"}.get(phase, phase or "preparing")


def free_memory() -> None:
    """Gives back what the failed attempt held; nothing must refer to it any more."""
    gc.collect()
    if "torch" in sys.modules:
        from dreambooth.engine import hardware

        hardware.give_back_memory()
