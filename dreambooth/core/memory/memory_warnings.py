"""Warnings before a run begins, where less memory is free than it needs."""

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
    """A warning where fewer bytes of the device are free than a run needs, with the settings that would fit; else None.

    `cached` is that of `footprint.needs`.
    """
    proposed = planner.plan(settings, model, family, area, card_with(free), cached=cached)
    if proposed.needed_before.total <= free:
        return None
    needed = memory(proposed.needed_before.total)
    shortage = f"As it is set, the run needs about {needed} of the device, and {memory(free)} of it are free."
    instead = f", or set what fits: {proposed.flags}" if proposed.fits and proposed.flags else ""
    return Problem(shortage, do=f"Close other programs that use it, a WebUI with its model among them{instead}.")


def of_computer(settings: Settings, model: Anatomy, free: int) -> Problem | None:
    """A warning where less of the computer's own memory is free than streamed weights take there; else None."""
    streamed = footprint.computer_bytes(settings, model)
    if streamed <= free:
        return None
    key = "memory.unet_weights"
    shortage = (
        f"{key}: what is streamed takes about {memory(streamed)} of the computer's own memory (RAM), and {memory(free)}"
    )
    other = "take an optimizer that keeps less, or train a LoRA" if settings.is_full else "set it to int8"
    return Problem(f"{shortage} of that are free.", key, f"Close other programs, or {other}.")
