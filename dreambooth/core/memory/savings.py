"""What of the settings takes less memory, from what costs nothing to what costs most: the planner and the retreat from
too little memory pull one after another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dreambooth.core import engine_capabilities
from dreambooth.core.settings import Settings

SHARES = (0.25, 0.5, 0.75)  # that may be checkpointed, before all is

_FETCHED = "each block is fetched for its turn"

Changes = dict[str, Any]


@dataclass(frozen=True)
class Lever:
    """One thing that takes less memory. `pull` gives what it changes, or None where it has nothing left to give.

    `keeps` is true where a run can go on with it from its last state and learns the same; `lightens` where it also
    makes less of what streamed training carries to the card and back; `may_take_more` where it is no gain of every run.
    """

    name: str
    costs: str
    pull: Callable[[Settings], Changes | None]
    keeps: bool = False
    lightens: bool = False
    may_take_more: bool = False

    def named(self, changes: Changes) -> str:
        """Its name with what it changes."""
        return self.name.format(**{key.split(".")[1]: value for key, value in changes.items()})


def _eight_bits(settings: Settings) -> Changes | None:
    wanted = {"adamw": "adamw_8bit", "lion": "lion_8bit"}.get(settings.optimizer.name)
    if wanted is None or settings.is_embedding or engine_capabilities.fault("optimizer.name", wanted):
        return None
    return {"optimizer.name": wanted}


def _checkpointing(settings: Settings) -> Changes | None:
    """All blocks, at once where some are already."""
    changes: Changes = {} if settings.batching.gradient_checkpointing else {"batching.gradient_checkpointing": True}
    return changes | ({"memory.checkpointed_share": 1.0} if settings.memory.checkpointed_share < 1 else {}) or None


def _some_checkpointing(settings: Settings) -> Changes | None:
    """A step more of the cheapest blocks."""
    now = settings.memory.checkpointed_share if settings.batching.gradient_checkpointing else 0.0
    more = next((share for share in SHARES if share > now), None)
    return {"batching.gradient_checkpointing": True, "memory.checkpointed_share": more} if more else None


def _bf16(settings: Settings) -> Changes | None:
    if not settings.is_full or settings.memory.bf16_weights or engine_capabilities.fault("memory.bf16_weights", "on"):
        return None
    return {"memory.bf16_weights": True}


def _in_backward(settings: Settings) -> Changes | None:
    if not settings.is_full or settings.memory.step_in_backward or scales_losses(settings):
        return None
    return {"memory.step_in_backward": True}


def scales_losses(settings: Settings) -> bool:
    """Whether training is in fp16, whose losses are scaled by what all gradients together show: no step is taken
    before the last of them is there."""
    chosen = settings.tuning.mixed_precision
    automatic = chosen == "auto" and not settings.memory.bf16_weights and engine_capabilities.takes_fp16()
    return automatic or chosen == "fp16"


def _half_batches(settings: Settings) -> Changes | None:
    batch, parts = settings.batching.train_batch_size, settings.batching.gradient_accumulation_steps
    if batch == 1:
        return None
    fewer = batch // 2 if batch % 2 == 0 else 1
    return {
        "batching.train_batch_size": fewer,
        "batching.gradient_accumulation_steps": parts * (batch // fewer),
    }


def _eight_bit_model(settings: Settings) -> Changes | None:
    return _lying(settings, ("whole",), "int8")


def _streamed_model(settings: Settings) -> Changes | None:
    return _lying(settings, ("whole",), "streamed")


def _streamed_packed_model(settings: Settings) -> Changes | None:
    return _lying(settings, ("int8", "nf4"), "streamed")


def _lying(settings: Settings, before: tuple[str, ...], after: str) -> Changes | None:
    rests = settings.is_embedding or (settings.is_lora and settings.lora.kind == "lora")
    if not rests or settings.memory.unet_weights not in before:
        return None
    return {"memory.unet_weights": after, **(_checkpointing(settings) or {})}  # which needs all blocks checkpointed


def _streamed_training(settings: Settings) -> Changes | None:
    whole = settings.memory.unet_weights == "whole"
    return {"memory.unet_weights": "streamed"} if whole and _could_stream(settings) else None


def _could_stream(settings: Settings) -> bool:
    in_backward = settings.memory.step_in_backward and not scales_losses(settings)
    return settings.is_full and settings.tuning.train_unet and in_backward


def trains_streamed(settings: Settings) -> bool:
    return settings.memory.unet_weights == "streamed" and _could_stream(settings)


def _tiles(settings: Settings) -> Changes | None:
    return None if settings.memory.vae_decoding == "tiled" else {"memory.vae_decoding": "tiled"}


def _as_many(settings: Settings) -> Changes | None:
    return {"batching.class_batch_size": 0} if settings.batching.class_batch_size else None


def _adafactor(settings: Settings) -> Changes | None:
    chosen = settings.optimizer
    if not settings.is_full or chosen.name == "adafactor" or chosen.beta2:
        return None
    # With a beta1 it would keep a mean of its steps, as large as the model.
    return {"optimizer.name": "adafactor", **({"optimizer.beta1": 0.0} if chosen.beta1 else {})}


# A model in 4 bits is not among them: it changes gradients by a quarter, and streaming, which saves more, by nothing.
LEVERS = (
    Lever("as many pictures drawn together as there is room for", "previews and class pictures alone", _as_many),
    Lever("pictures decoded in tiles", "previews and class pictures alone", _tiles),
    Lever("the optimizer's state in 8 bits", "its steps are hardly others", _eight_bits, lightens=True),
    Lever(
        "gradient checkpointing of {checkpointed_share:.0%} of what the blocks hold",
        "the transformers first, which takes the least time",
        _some_checkpointing,
    ),
    Lever("gradient checkpointing", "about a third more time", _checkpointing, keeps=True),
    Lever("the resting model in 8 bits", "each block is unpacked for its turn", _eight_bit_model),
    Lever("the resting model in the computer's memory", _FETCHED, _streamed_model, keeps=True, may_take_more=True),
    Lever("the resting model in the computer's memory", _FETCHED, _streamed_packed_model),
    Lever("weights held in bf16", "each change is rounded at random", _bf16, lightens=True),
    Lever("the optimizer's step in the backward pass", "each gradient is clipped by itself", _in_backward),
    Lever(
        "batches of {train_batch_size}, {gradient_accumulation_steps} of them added up",
        "the same steps, a little slower",
        _half_batches,
        keeps=True,
        may_take_more=True,
    ),
    Lever("adafactor", "it keeps next to nothing, and learns a little differently", _adafactor),
    Lever(
        "the UNet in the computer's memory",
        "each block and its states are fetched for their turn and go back changed",
        _streamed_training,
        keeps=True,
        may_take_more=True,
    ),
)
TURNED = (
    "batching.class_batch_size",
    "memory.vae_decoding",
    "optimizer.name",
    "optimizer.beta1",
    "memory.bf16_weights",
    "memory.unet_weights",
    "memory.step_in_backward",
    "batching.train_batch_size",
    "batching.gradient_accumulation_steps",
)
