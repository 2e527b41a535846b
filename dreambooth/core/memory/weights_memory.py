"""How much memory weights take: in which precision they are, and which of them are on the device.

Sizes are in bytes, of all weights together where nothing else is said.
"""

from __future__ import annotations

from dreambooth.core import engine_capabilities
from dreambooth.core.models.anatomy import Anatomy
from dreambooth.core.settings import Settings

_QUANTIZED_BYTES = {"int8": 1.0, "nf4": 0.5 + 4 / 64}  # of each value; the scales of int8 are few
ONE_WEIGHT = 0.6  # the largest weight's share of the largest block, and the middle block's, which has no checkpoint


def precision(settings: Settings) -> str:
    """What a step computes in: no (float32), mixed, or bf16 where the weights are in that, too."""
    if settings.memory.bf16_weights:
        return "bf16"
    chosen = settings.tuning.mixed_precision
    is_full = chosen == "no" or (chosen == "auto" and engine_capabilities.takes_full_precision())
    return "no" if is_full else "mixed"


def trained_value_bytes(settings: Settings) -> int:
    """Bytes of each value that is trained, and of its gradient."""
    return 2 if settings.memory.bf16_weights else 4


def base_value_bytes(settings: Settings) -> int:
    """Bytes of each value of the base model."""
    if settings.is_full:
        return trained_value_bytes(settings)
    return 4 if precision(settings) == "no" else 2


def trains_streamed(settings: Settings) -> bool:
    """Whether the weights that are trained are streamed from the computer's memory."""
    return settings.memory.unet_weights == "streamed" and settings.is_full and settings.tuning.train_unet


def trained_in_ram(settings: Settings, model: Anatomy) -> int:
    """How many trained values are kept in the computer's memory, with their optimizer state."""
    if not trains_streamed(settings):
        return 0
    return min(model.blocks, model.alone.get(settings.tuning.unet_layers, model.unet))


def base_on_device(settings: Settings, model: Anatomy) -> int:
    """The base model's weights that stay on the device: the UNet's, and those of text encoders that encode captions at
    every step."""
    value_bytes, kept_as = base_value_bytes(settings), settings.memory.unet_weights
    text = model.read_anew(settings) * value_bytes
    if kept_as == "whole":
        return model.unet * value_bytes + text
    outside = (model.unet - model.blocks) * value_bytes
    return int(outside + model.blocks * _QUANTIZED_BYTES.get(kept_as, 0) + text)


def fetched_bytes(settings: Settings, model: Anatomy) -> int:
    """The copies of a block's weights that are there for its turn, where the UNet is streamed or quantized."""
    kept_as = settings.memory.unet_weights
    if kept_as == "whole":
        return 0
    # Beside the block itself: from int8 its values in float32, streamed the next block; and the middle block.
    own = base_value_bytes(settings)
    with_next = own + {"int8": 4, "streamed": own}.get(kept_as, 0)
    return int(model.largest_block * (with_next + own * ONE_WEIGHT))


def autocast_bytes(settings: Settings, model: Anatomy) -> int:
    """The half-precision copies that autocast caches of the UNet's weights, where these are trained in float32."""
    if not (settings.is_full and settings.tuning.train_unet) or precision(settings) != "mixed":
        return 0
    return 2 * (model.alone.get(settings.tuning.unet_layers, model.unet) - trained_in_ram(settings, model))
