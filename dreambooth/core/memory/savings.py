"""Changes of settings that save memory, from those that cost nothing to those that cost most.

The planner tries one after another, and so does a run after too little memory (engine/run/recovery.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dreambooth.core import engine_capabilities
from dreambooth.core.settings import Settings

SHARES = (0.25, 0.5, 0.75)  # of what the blocks hold that may be checkpointed, before all of it is

_FETCHED = "each block is fetched for its turn"

Changes = dict[str, Any]


@dataclass(frozen=True)
class Saving:
    """One kind of change that saves memory."""

    name: str  # may name settings that it changes, in braces
    costs: str  # what is lost by it
    propose: Callable[[Settings], Changes | None]  # what to change, or None where it has nothing left to save
    resumable: bool = False  # a run can go on with it from its last state, and learns the same
    speeds_streaming: bool = False  # less is copied to the GPU and back while streamed weights are trained
    may_not_help: bool = False  # some runs take no less memory with it

    def named(self, changes: Changes) -> str:
        """Its name with the values that it sets."""
        return self.name.format(**{key.split(".")[1]: value for key, value in changes.items()})


def _eight_bits(settings: Settings) -> Changes | None:
    optimizer = {"adamw": "adamw_8bit", "lion": "lion_8bit"}.get(settings.optimizer.name)
    if optimizer is None or settings.is_embedding or engine_capabilities.fault("optimizer.name", optimizer):
        return None
    return {"optimizer.name": optimizer}


def _checkpointing(settings: Settings) -> Changes | None:
    """Gradient checkpointing of all blocks."""
    changes: Changes = {}
    if not settings.batching.gradient_checkpointing:
        changes["batching.gradient_checkpointing"] = True
    if settings.memory.checkpointed_share < 1:
        changes["memory.checkpointed_share"] = 1.0
    return changes or None


def _some_checkpointing(settings: Settings) -> Changes | None:
    """Gradient checkpointing of the next larger share of the blocks, those first whose recomputation costs least."""
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
    """Whether training is in fp16. Its losses are scaled by what all gradients together show, so that no weight can be
    updated before the last of them is there."""
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
    return _frozen_unet(settings, ("whole",), "int8")


def _streamed_model(settings: Settings) -> Changes | None:
    return _frozen_unet(settings, ("whole",), "streamed")


def _streamed_packed_model(settings: Settings) -> Changes | None:
    return _frozen_unet(settings, ("int8", "nf4"), "streamed")


def _frozen_unet(settings: Settings, before: tuple[str, ...], after: str) -> Changes | None:
    """Keeps the weights of a UNet that is not trained itself in another way."""
    can_be_kept = settings.is_embedding or (settings.is_lora and settings.lora.kind == "lora")
    if not can_be_kept or settings.memory.unet_weights not in before:
        return None
    return {"memory.unet_weights": after, **(_checkpointing(settings) or {})}  # which needs all blocks checkpointed


def _streamed_training(settings: Settings) -> Changes | None:
    whole = settings.memory.unet_weights == "whole"
    return {"memory.unet_weights": "streamed"} if whole and _could_stream(settings) else None


def _could_stream(settings: Settings) -> bool:
    in_backward = settings.memory.step_in_backward and not scales_losses(settings)
    return settings.is_full and settings.tuning.train_unet and in_backward


def trains_streamed(settings: Settings) -> bool:
    """Whether weights that are trained are streamed."""
    return settings.memory.unet_weights == "streamed" and _could_stream(settings)


def _tiles(settings: Settings) -> Changes | None:
    return None if settings.memory.vae_decoding == "tiled" else {"memory.vae_decoding": "tiled"}


def _automatic_batch(settings: Settings) -> Changes | None:
    return {"batching.class_batch_size": 0} if settings.batching.class_batch_size else None


def _adafactor(settings: Settings) -> Changes | None:
    chosen = settings.optimizer
    if not settings.is_full or chosen.name == "adafactor" or chosen.beta2:
        return None
    # With a beta1 it would keep a mean of the gradients, as large as the model.
    return {"optimizer.name": "adafactor", **({"optimizer.beta1": 0.0} if chosen.beta1 else {})}


# Without nf4: it changes gradients by a quarter, while streaming saves more and changes nothing.
SAVINGS = (
    Saving(
        "as many pictures drawn together as there is room for", "previews and class pictures alone", _automatic_batch
    ),
    Saving("pictures decoded in tiles", "previews and class pictures alone", _tiles),
    Saving("the optimizer's state in 8 bits", "its steps are hardly others", _eight_bits, speeds_streaming=True),
    Saving(
        "gradient checkpointing of {checkpointed_share:.0%} of what the blocks hold",
        "the transformers first, which takes the least time",
        _some_checkpointing,
    ),
    Saving("gradient checkpointing", "about a third more time", _checkpointing, resumable=True),
    Saving("the resting model in 8 bits", "each block is unpacked for its turn", _eight_bit_model),
    Saving("the resting model in the computer's memory", _FETCHED, _streamed_model, resumable=True, may_not_help=True),
    Saving("the resting model in the computer's memory", _FETCHED, _streamed_packed_model),
    Saving("weights held in bf16", "each change is rounded at random", _bf16, speeds_streaming=True),
    Saving("the optimizer's step in the backward pass", "each gradient is clipped by itself", _in_backward),
    Saving(
        "batches of {train_batch_size}, {gradient_accumulation_steps} of them added up",
        "the same steps, a little slower",
        _half_batches,
        resumable=True,
        may_not_help=True,
    ),
    Saving("adafactor", "it keeps next to nothing, and learns a little differently", _adafactor),
    Saving(
        "the UNet in the computer's memory",
        "each block and its states are fetched for their turn and go back changed",
        _streamed_training,
        resumable=True,
        may_not_help=True,
    ),
)
CHANGED_KEYS = (  # by any of them, beside those of planner.QUICKEST
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
