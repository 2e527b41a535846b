"""What a run will take: disk now; see the functions for what each figure rests on."""

from __future__ import annotations

from dreambooth.core.settings import Settings


def disk_bytes(values: int, settings: Settings, epochs: int) -> int:
    """About how much a run of so many epochs writes for a model of `values` parameters: its outputs, and its state,
    which is there twice while it changes."""
    one = values * (2 if settings.saving.half_model else 4)
    every = settings.intervals.save_model_every
    saves = 1 + ((epochs - 1) // every if every else 0)
    if settings.is_lora:
        return 200_000_000 * saves
    return one * saves + 2 * values * (4 + 8 + (4 if settings.tuning.use_ema else 0))
