"""What is to be known before a run begins, where less memory is free than it needs."""

from __future__ import annotations

from dreambooth.core.errors import Problem
from dreambooth.core.formatting import memory
from dreambooth.core.memory import footprint, planner
from dreambooth.core.memory.headroom import card_with
from dreambooth.core.models.anatomy import Anatomy
from dreambooth.core.settings import Settings


def of_device(
    settings: Settings, model: Anatomy, family: str, area: int, free: int, *, cached: int = 0
) -> Problem | None:
    """What is to be known where fewer bytes of the device are free than a run needs, with what would fit there; None
    where enough are."""
    made = planner.plan(settings, model, family, area, card_with(free), cached=cached)
    if made.needed_before.total <= free:
        return None
    needed = memory(made.needed_before.total)
    what = f"As it is set, the run needs about {needed} of the device, and {memory(free)} of it are free."
    instead = f", or set what fits: {made.flags}" if made.fits and made.flags else ""
    return Problem(what, do=f"Close other programs that use it, a WebUI with its model among them{instead}.")


def of_computer(settings: Settings, model: Anatomy, free: int) -> Problem | None:
    """The same of the computer's own memory, where weights are streamed from it."""
    lying = footprint.computer_bytes(settings, model)
    if lying <= free:
        return None
    key = "memory.unet_weights"
    what = f"{key}: what is streamed takes about {memory(lying)} of the computer's own memory (RAM), and {memory(free)}"
    other = "take an optimizer that keeps less, or train a LoRA" if settings.is_full else "set it to int8"
    return Problem(f"{what} of that are free.", key, f"Close other programs, or {other}.")
