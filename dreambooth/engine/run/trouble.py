"""What is done when training fails for want of memory or runs away: which settings it goes on with from its last state.

Nothing here changes what is learned but the learning rate, and that only where training has diverged.
"""

from __future__ import annotations

import gc
import re
import sys
from typing import Any

from dreambooth.core.errors import Problem, UserError
from dreambooth.core.memory import planner
from dreambooth.core.settings import Settings
from dreambooth.core.settings.conflicts.of_optimizers import PRODIGY_LEAST_RATE, rates
from dreambooth.core.values import plain

TRAINING = "training"
MOST_TURNS_BACK = 3  # after divergence, in one run
_DRAWING = ("class pictures", "previews")
_TRAIN_LESS = "begin a new run with a smaller general.resolution, a LoRA of a smaller rank or an 8-bit optimizer"
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


def smaller(settings: Settings, phase: str, together: int = 0) -> tuple[Changes, str] | None:
    """The next thing that takes less memory in this phase, with its name; None where nothing is left. `together` is
    how many pictures were drawn at a time, where the settings leave that to the free memory."""
    if phase in _DRAWING:
        return _smaller_drawing(settings, together)
    if phase == TRAINING and settings.tuning.cuda_graphs:
        return {"tuning.cuda_graphs": False}, "no CUDA graphs"
    return planner.smaller(settings) if phase == TRAINING else None


def _smaller_drawing(settings: Settings, together: int) -> tuple[Changes, str] | None:
    batch, decoding = settings.batching.class_batch_size or together, settings.memory.vae_decoding
    if batch > 1:
        return {"batching.class_batch_size": batch // 2}, f"{batch // 2} pictures drawn at a time"
    if decoding != "tiled":
        return {"memory.vae_decoding": "tiled"}, "pictures decoded in tiles"
    return None


def out_of_memory(settings: Settings, phase: str, said: str, together: int = 0) -> tuple[Changes, Problem]:
    """What to change so that it goes on, and what says so; `together` as for `smaller`.

    Raises UserError where nothing is left to change, or the person wants the run to stop.
    """
    begin = _said(phase, said)
    step = smaller(settings, phase, together)
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
    return {"loading the model": "loading the model", TRAINING: "training", "previews": "drawing previews"}.get(
        phase, phase or "preparing"
    )


def free_memory() -> None:
    """Gives back what the failed attempt held; nothing must refer to it any more."""
    gc.collect()
    if "torch" in sys.modules:
        from dreambooth.engine import hardware

        hardware.give_back_memory()
