"""How much memory of a card training takes, from a table that was counted on models of full size.

`footprint.json` has, for each kind of step, what it holds beside weights, optimizer and gradients, at fourteen moments:
the forward pass, the backward pass until its first gradient, and twelve parts of what follows (`python -m dreambooth
bench memory` makes it; see engine/bench/footprint.py). At each moment some of the gradients are there; the most of
both together is what a step takes. Models of other widths are scaled by what their layers put out.

What is not counted but taken from others' figures is `DRIVER_BYTES` and `SPARE`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dreambooth.core import anatomy
from dreambooth.core.anatomy import Anatomy
from dreambooth.core.settings import Settings

TABLE = Path(__file__).with_name("footprint.json")
FAMILIES = ("sd1", "sd2", "sdxl")
# CUDA's context with kernels loaded as they are used: 287 MB (pytorch/pytorch#86509) to 400 MB (#109888), and cuDNN's
# and cuBLAS's workspaces.
DRIVER_BYTES = 500_000_000
SPARE = 0.06  # of a card: what the desktop holds, and the gaps of PyTorch's allocator
OPTIMIZER_BYTES = {  # kept for each trained value
    "adamw": 8.0,
    "adamw_8bit": 2.0,
    "paged_adamw_8bit": 2.0,
    "lion": 4.0,
    "lion_8bit": 1.0,
    "paged_lion_8bit": 1.0,
    "adafactor": 0.1,  # a row and a column of each matrix; the sizes of SD 1's UNet
    "came": 4.1,  # a mean, and two rows and columns
    "prodigy": 16.0,
    "adamw_schedule_free": 8.0,
}
PIXELS_AT_ONCE = 2**19  # of pictures that are encoded together
GRADIENTS_AT_ONCE = 2**25  # bytes of gradients that are applied together in the backward pass
_RESTING_BYTES = {"int8": 1.0, "nf4": 0.5 + 4 / 64}  # of each value; the scales of 8 bits are few
_ONE_WEIGHT = 0.6  # the largest weight's share of the largest block, and the middle block's, which has no checkpoint
_LATENT = 8  # pixels a latent, along each side
_ROUNDING_BYTES = 2 * 4 * 2**25  # weights and gradients in full precision while their change is rounded to bf16
_CHANGE_BYTES = 13  # of each value of a weight in bf16: itself, gradient and update in full precision, with adafactor
_TILE = 512  # pixels; what is decoded at a time in tiles


@dataclass(frozen=True)
class Memory:
    """Bytes on the device at the peak of training, or of encoding or drawing where that takes more."""

    weights: int
    gradients: int
    optimizer: int
    averages: int
    activations: int
    other: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.averages + self.activations + self.other


def needs(settings: Settings, model: Anatomy, family: str, area: int) -> Memory:
    """About how much memory training takes; `area` is the pixels of the largest bucket in use."""
    trained, own = model.trained(settings), _own_bytes(settings)
    weights = _on_device(settings, model) + (trained * own if settings.is_lora else 0)
    resident = trained - _lent(settings, model)
    optimizer = int(resident * OPTIMIZER_BYTES[settings.optimizer.name])
    averages = resident * 4 * settings.tuning.use_ema
    held = _gradients(settings, model)
    peak = passing_bytes(settings, model, family, area)
    lasting = weights + optimizer + averages
    drawing = lasting + model.vae * 4 + _drawing(settings, area) if settings.previews.count else 0
    encoding = model.vae * 4 + encoding_bytes(area)  # where room is short, the UNet comes to the device only later
    activations = max(lasting + peak, drawing, encoding) - lasting - held
    return Memory(weights, held, optimizer, averages, max(0, activations), DRIVER_BYTES)


def passing_bytes(settings: Settings, model: Anatomy, family: str, area: int) -> int:
    """The most that a step holds beside what always lies on the card: activations, gradients, what comes and goes."""
    peak = _step_peak(settings, model, family, area, _gradients(settings, model))
    if settings.memory.unet_weights == "whole":
        return peak
    own = _base_bytes(settings)
    if not _trains_streamed(settings):
        # One block has its weights, where in full precision on their way from 8 bits; and the middle one's.
        whole = own + 4 * (settings.memory.unet_weights == "int8")
        return peak + int(model.largest_block * (whole + own * _ONE_WEIGHT))
    # Where activations are large, blocks are small. The large ones have their weights and gradients, and one weight is
    # there once more with its states for its change.
    changed = own + OPTIMIZER_BYTES[settings.optimizer.name] + 2 * 4 * settings.memory.bf16_weights
    change = model.largest_block * (own * (2 + _ONE_WEIGHT) + changed * _ONE_WEIGHT)
    return int(max(peak + model.largest_block * own * _ONE_WEIGHT, change))


def computer_bytes(settings: Settings, model: Anatomy) -> int:
    """How much of the computer's own memory streamed weights take there, with what belongs to trained ones."""
    if settings.memory.unet_weights != "streamed":
        return 0
    each = OPTIMIZER_BYTES[settings.optimizer.name] + 4 * settings.tuning.use_ema
    return int(model.blocks * _base_bytes(settings) + each * _lent(settings, model))


def family_needs(settings: Settings, family: str, resolution: int = 0) -> Memory:
    """The same for a model of full size of a family, from the settings alone; 0 takes the family's own resolution.

    Quick enough to be asked whenever a control moves.
    """
    side = resolution or settings.general.resolution or OWN_RESOLUTION[family]
    return needs(settings, full_size(family), family, side**2)


OWN_RESOLUTION = {"sd1": 512, "sd2": 768, "sdxl": 1024}


@cache
def full_size(family: str) -> Anatomy:
    return anatomy.from_json(_table()[family])


def pictures_at_once(area: int) -> int:
    """How many pictures of so many pixels are encoded together."""
    return max(1, min(8, PIXELS_AT_ONCE // area))


def _own_bytes(settings: Settings) -> int:
    """Bytes of each value that is trained, and of its gradient."""
    return 2 if settings.memory.bf16_weights else 4


def _precision(settings: Settings) -> str:
    if settings.memory.bf16_weights:
        return "bf16"
    return "no" if settings.tuning.mixed_precision == "no" else "mixed"


def _trains_streamed(settings: Settings) -> bool:
    """Whether weights are trained that lie in the computer's memory."""
    return settings.memory.unet_weights == "streamed" and not settings.is_lora and settings.tuning.train_unet


def _lent(settings: Settings, model: Anatomy) -> int:
    """How many trained values lie in the computer's memory, with what the optimizer keeps of them."""
    if not _trains_streamed(settings):
        return 0
    return min(model.blocks, model.alone.get(settings.tuning.unet_layers, model.unet))


def _on_device(settings: Settings, model: Anatomy) -> int:
    """The weights of the model that stay on the card: the UNet's, and those of text encoders that learn."""
    own = _base_bytes(settings)
    text = model.text * own if settings.tuning.text_encoder_learns else 0
    lying = settings.memory.unet_weights
    if lying == "whole":
        return model.unet * own + text
    return int((model.unet - model.blocks) * own + model.blocks * _RESTING_BYTES.get(lying, 0) + text)


def _gradients(settings: Settings, model: Anatomy) -> int:
    """The most gradients that are there at once beside those of streamed weights."""
    held = (model.trained(settings) - _lent(settings, model)) * _own_bytes(settings)
    return min(held, GRADIENTS_AT_ONCE) if settings.memory.step_in_backward else held


def _base_bytes(settings: Settings) -> int:
    """Bytes of each value of the model."""
    if not settings.is_lora:
        return _own_bytes(settings)
    return 2 if settings.tuning.mixed_precision != "no" else 4


def _step_peak(settings: Settings, model: Anatomy, family: str, area: int, gradients: int) -> int:
    """The most that a step holds at once beside weights, optimizer and average, its gradients among it."""
    batching = settings.batching
    batch = batching.train_batch_size * (2 if _has_class_pictures(settings) else 1)
    always_held = batching.gradient_accumulation_steps > 1 or settings.memory.step_in_backward
    text = _text_bytes(settings, family, batch)
    peak = 0.0
    for share, bytes_ in _moments(settings, model, family, batch, area // _LATENT**2):
        peak = max(peak, bytes_ + text + gradients * (1 if always_held else share))
    rounding = _ROUNDING_BYTES
    if settings.memory.step_in_backward:
        rounding = max(rounding, int(model.largest_block * _ONE_WEIGHT * _CHANGE_BYTES) - gradients)
    at_the_change = gradients + rounding * settings.memory.bf16_weights
    return int(max(peak, at_the_change))


def _moments(settings: Settings, model: Anatomy, family: str, batch: int, pixels: int) -> Sequence[tuple[float, float]]:
    """(share of the gradients that are there, bytes of everything else) at each moment of a step of the UNet."""
    if not settings.batching.gradient_checkpointing:
        return _counted(settings, model, family, batch, pixels, "whole")
    all_checkpointed = _counted(settings, model, family, batch, pixels, "checkpointed")
    share = settings.memory.checkpointed_share
    if share == 1:
        return all_checkpointed
    whole = _counted(settings, model, family, batch, pixels, "whole")
    return [(there, share * again + (1 - share) * kept) for (there, kept), (_, again) in zip(whole, all_checkpointed)]


def _counted(
    settings: Settings, model: Anatomy, family: str, batch: int, pixels: int, end: str
) -> list[tuple[float, float]]:
    """The same where all blocks are checkpointed, or none."""
    kind = settings.lora.kind if settings.is_lora else "full"
    layers = settings.lora.layers if settings.is_lora else "all"
    # What autocast keeps of whole weights in full precision, it does not keep of copies that come and go.
    precision = "bf16" if _precision(settings) == "mixed" and _trains_streamed(settings) else _precision(settings)
    wanted = "/".join([kind, layers, precision, end])
    known = f"{'full' if kind == 'full' else 'lora'}/{'all' if kind == 'full' else 'transformer'}/mixed/{end}"
    family = family if family in FAMILIES else "sd1"
    steps, first = _table()[family]["steps"], _table()["sd1"]["steps"]
    where = batch, pixels, settings.lora.rank if settings.is_lora else 0
    if wanted in steps:
        return _evaluated(steps[wanted], full_size(family), model, *where)
    # Counted on SD 1 alone: as much more or less than the usual kind as there.
    ratio = _peak(first[wanted if wanted in first else known], *where) / _peak(first[known], *where)
    return [(share, ratio * size) for share, size in _evaluated(steps[known], full_size(family), model, *where)]


def _evaluated(
    row: Mapping[str, Any], counted: Anatomy, model: Anatomy, batch: int, pixels: int, rank: int
) -> list[tuple[float, float]]:
    """A row of the table at a batch, a size and a rank, scaled to the model."""
    wider, larger = model.outputs / counted.outputs, model.unet / counted.unet
    values = [larger, batch * wider, batch * pixels * wider, rank * wider, batch * pixels * rank * wider]
    return [
        (share, sum(one * value for one, value in zip(plane, values)))
        for share, plane in zip(row["gradients"], row["bytes"])
    ]


def _peak(row: Mapping[str, Any], batch: int, pixels: int, rank: int) -> float:
    made = full_size("sd1")
    return max(size for _, size in _evaluated(row, made, made, batch, pixels, rank))


def _text_bytes(settings: Settings, family: str, batch: int) -> float:
    """What the text encoders hold while they learn."""
    if not settings.tuning.text_encoder_learns:
        return 0.0
    method = "lora" if settings.is_lora else "full"
    end = "checkpointed" if settings.batching.gradient_checkpointing else "whole"
    start, each = _table()[family if family in FAMILIES else "sd1"]["text"][f"{method}/{_precision(settings)}/{end}"]
    return float(start + each * batch * settings.tuning.max_token_length / 75)


def encoding_bytes(area: int) -> int:
    """What encoding pictures of so many pixels holds beside the VAE, before the first step."""
    return _pictures("encode", area) * pictures_at_once(area)


def _drawing(settings: Settings, area: int) -> int:
    """What decoding previews holds beside the model and what is trained."""
    choice = settings.previews
    area = choice.width * choice.height or area
    count = min(choice.count, settings.batching.class_batch_size) if settings.memory.vae_decoding == "whole" else 1
    if settings.memory.vae_decoding == "tiled":
        area = min(area, _TILE**2)
    return _pictures("decode", area) * count


def _pictures(what: str, area: int) -> int:
    start, each = _whole_table()["vae"][what]
    return int(start + each * area)


def _has_class_pictures(settings: Settings) -> bool:
    return any(
        concept.class_mode == "folder" or (concept.class_mode == "fill" and concept.num_class_images_per)
        for concept in settings.concepts
    )


def _table() -> Mapping[str, Any]:
    families: Mapping[str, Any] = _whole_table()["families"]
    return families


@cache
def _whole_table() -> Mapping[str, Any]:
    table: Mapping[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return table
