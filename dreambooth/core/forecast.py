"""What a run takes of the disk, counted from the model file's table of contents; and of memory, see footprint."""

from __future__ import annotations

from collections.abc import Iterable

from dreambooth.core.buckets import Bucket
from dreambooth.core.budget import Budget
from dreambooth.core.memory import footprint
from dreambooth.core.memory.footprint import Memory
from dreambooth.core.models import anatomy, checkpoint
from dreambooth.core.models.model_file import Header
from dreambooth.core.settings import Settings

_LATENT = 8  # pixels a latent, along each side
_ABOUT_BYTES = 5500  # what a file says of itself, its settings for the most; only beside an embedding's it counts


def memory(header: Header, settings: Settings, largest: Bucket, family: str = "") -> Memory:
    """About how much memory of a GPU training takes, in bytes; `largest` is the largest bucket in use."""
    return footprint.needs(settings, anatomy.of(header), family or checkpoint.describe(header).family, largest.area)


def save_bytes(header: Header, settings: Settings) -> int:
    """The size of each LoRA, checkpoint or embedding that a run writes."""
    made = anatomy.of(header)
    trained = made.trained(settings)
    if settings.is_embedding:
        return trained * 4 + len(settings.words) * _ABOUT_BYTES  # always in full precision
    if settings.saving.half_model:
        return 2 * (trained if settings.is_lora else sum(t.values for t in header.tensors.values()))
    kept = 0 if settings.is_lora else sum(t.end - t.start for t in anatomy.untrained(header, settings))
    return trained * 4 + kept


def saves(settings: Settings, length: Budget) -> int:
    """How many of them a run of this length writes."""
    intervals = settings.intervals
    best = settings.saving.keep_best and any(concept.held_out for concept in settings.concepts)
    return 1 + best + length.times_due(intervals.save_model_every, intervals.save_model_every_steps)


def state_bytes(header: Header, settings: Settings) -> int:
    """The size of a state: the trained weights, what the optimizer keeps, and the EMA."""
    own = 2 if settings.memory.bf16_weights else 4
    kept = footprint.optimizer_bytes(settings)
    each = own + kept + 4 * settings.tuning.use_ema
    return int(anatomy.of(header).trained(settings) * each)


def latent_bytes(buckets: Iterable[Bucket], masked: int = 0) -> int:
    """The size of encoded pictures: mean and standard deviation, 4 channels of 4 bytes each; for an inpainting model
    also what so many masks leave of each."""
    return sum(bucket.area // _LATENT**2 * (2 + masked) * 4 * 4 for bucket in buckets)


def disk_bytes(header: Header, settings: Settings, length: Budget) -> int:
    """The most that a run takes at once: what it writes, its states, and one more while it is written."""
    at_once = states_kept(settings, length) + 1
    return save_bytes(header, settings) * saves(settings, length) + at_once * state_bytes(header, settings)


def states_kept(settings: Settings, length: Budget) -> int:
    """How many states a run keeps at most: the newest, and one for each so many epochs."""
    intervals = settings.intervals
    kept = intervals.states_kept + length.times_due(intervals.states_kept_every)
    saved = length.times_due(intervals.save_state_every, intervals.save_state_every_steps)
    return max(1, min(kept, saved))
