"""What a run takes of the disk, counted from the model file's table of contents; and of memory, see footprint."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dreambooth.core.buckets import Bucket
from dreambooth.core.memory import footprint
from dreambooth.core.memory.footprint import Memory
from dreambooth.core.models import anatomy, checkpoint
from dreambooth.core.models.families import LATENT_FACTOR
from dreambooth.core.models.model_file import Header
from dreambooth.core.run_length import Budget
from dreambooth.core.settings import Settings

_ABOUT_BYTES = 5500  # what a file says of itself, its settings for the most; only beside an embedding's it counts


def memory(header: Header, settings: Settings, largest: Bucket, family: str = "") -> Memory:
    """About how much memory of a GPU training takes, in bytes; `largest` is the largest bucket in use."""
    return footprint.needs(settings, anatomy.of(header), family or checkpoint.describe(header).family, largest.area)


def save_bytes(header: Header, settings: Settings) -> int:
    """The size of each LoRA, checkpoint or embedding that a run writes."""
    model = anatomy.of(header)
    trained = model.trained(settings)
    if settings.is_embedding:
        return trained * 4 + len(settings.words) * _ABOUT_BYTES  # always in full precision
    if settings.saving.half_model:
        return 2 * (trained if settings.is_lora else sum(t.values for t in anatomy.written(header).values()))
    kept = 0 if settings.is_lora else sum(t.end - t.start for t in anatomy.untrained(header, settings))
    return trained * 4 + kept


@dataclass(frozen=True)
class Done:
    """How far a run has come, and what it has written by then."""

    step: int = 0  # of its newest state
    states: int = 0
    results: frozenset[int] = frozenset()  # by the images that it had seen
    on_the_way: int = 0  # of them those of which only the newest stay


def saves(settings: Settings, length: Budget, done: Done = Done()) -> int:
    """How many of them a run of this length has at once at most, beside those that are there: one more than stay while
    it is written, as the last is in the end."""
    intervals = settings.intervals
    due = length.times_due(intervals.save_model_every, intervals.save_model_every_steps, after=done.step)
    written = sum(images > length.images_seen(done.step) for images in done.results)  # by an engine that was killed
    more = max(0, 1 + due - written)
    if intervals.results_kept:
        more = min(more, max(1, intervals.results_kept + 1 - done.on_the_way))
    return more + keeps_best(settings)


def keeps_best(settings: Settings) -> bool:
    """Whether the best result is written too."""
    return settings.saving.keep_best and settings.is_measured


def state_bytes(header: Header, settings: Settings) -> int:
    """The size of a state: the trained weights, what the optimizer keeps, and the EMA."""
    own = 2 if settings.memory.bf16_weights else 4
    kept = footprint.optimizer_bytes(settings)
    each = own + kept + 4 * settings.tuning.use_ema
    return int(anatomy.of(header).trained(settings) * each)


def latent_bytes(buckets: Iterable[Bucket], masked: int = 0) -> int:
    """The size of encoded pictures: mean and standard deviation, 4 channels of 4 bytes each; for an inpainting model
    also what so many masks leave of each."""
    return sum(bucket.area // LATENT_FACTOR**2 * (2 + masked) * 4 * 4 for bucket in buckets)


def disk_bytes(header: Header, settings: Settings, length: Budget) -> int:
    """The most that a run takes at once: what it writes, and its states."""
    results = saves(settings, length) * save_bytes(header, settings)
    return results + states(settings, length) * state_bytes(header, settings)


def states(settings: Settings, length: Budget, done: Done = Done()) -> int:
    """How many states a run has at once at most, beside those that are there: the newest, one for each so many epochs,
    and one more while it is written. A pause saves one too."""
    intervals = settings.intervals
    at_once = intervals.states_kept + length.times_due(intervals.states_kept_every) + 1
    saved = 1 + length.times_due(intervals.save_state_every, intervals.save_state_every_steps, after=done.step)
    return max(1, min(at_once - done.states, saved))
