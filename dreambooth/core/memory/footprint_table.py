"""Memory that was counted on models of full size, scaled to other batches, image sizes, LoRA ranks and models.

`footprint.json` has, for each kind of training step, the bytes that it holds beside weights, optimizer state and
gradients, at fourteen moments: the forward pass, the backward pass until its first gradient, and twelve parts of the
rest. It has the same for text encoders, for encoding and decoding images, and for the UNet's predictions while drawing.
`python -m dreambooth bench memory` makes it (see engine/bench/footprint.py). A model of another size is scaled by its
number of weights and by the values that its layers put out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dreambooth.core.models import anatomy
from dreambooth.core.models.anatomy import Anatomy
from dreambooth.core.models.families import FAMILIES, LATENT_FACTOR

TABLE = Path(__file__).with_name("footprint.json")
# cuDNN takes workspaces for the VAE's convolutions on whole images, and the allocator leaves gaps. Neither was counted:
# the factors of both together are assumed until they are measured.
_WORKSPACES = {"encode": 1.2, "decode": 1.5}

Moments = list[tuple[float, float]]  # at each, the share of the gradients that are there, and the activations' bytes


@cache
def full_size(family: str) -> Anatomy:
    """The anatomy of the model of a family that was counted."""
    return anatomy.from_json(families()[family])


@dataclass(frozen=True)
class StepKind:
    """A kind of training step: its method (full, a kind of LoRA, or embedding), the layers that it trains (all, a
    LoRA's choice, or none) and its precision (mixed, bf16 or no)."""

    trained: str
    layers: str
    precision: str

    @property
    def name(self) -> str:
        return f"{self.trained}/{self.layers}/{self.precision}"

    @property
    def common(self) -> StepKind:
        """The most similar kind of those that were counted for every family."""
        if self.trained == "embedding":
            return StepKind("embedding", "none", "mixed")
        return StepKind("full", "all", "mixed") if self.trained == "full" else StepKind("lora", "transformer", "mixed")


@dataclass(frozen=True)
class StepSize:
    """What a training step's memory is proportional to."""

    model: Anatomy
    family: str
    batch: int  # images
    pixels: int  # of a latent
    rank: float  # the mean rank of a LoRA's layers, else 0


def step_moments(kind: StepKind, how: str, size: StepSize) -> Moments:
    """What a step of the UNet holds at each moment; `how` is "checkpointed" where all its blocks are, else "whole"."""
    family = _counted(size.family)
    steps, sd1_steps = families()[family]["steps"], families()["sd1"]["steps"]
    name, common = f"{kind.name}/{how}", f"{kind.common.name}/{how}"
    if name in steps:
        return _evaluated(steps[name], full_size(family), size)
    # Counted on SD 1 alone: it takes as many times the memory of the common kind as there.
    ratio = _sd1_peak(sd1_steps[name if name in sd1_steps else common], size) / _sd1_peak(sd1_steps[common], size)
    return [(share, ratio * held) for share, held in _evaluated(steps[common], full_size(family), size)]


def text_encoder_bytes(family: str, name: str, prompts: float) -> float:
    """The activations of text encoders that are trained on so many prompts of 75 tokens at once; `name` is the method,
    the precision and "whole" or "checkpointed", with slashes between them."""
    start, each = families()[_counted(family)]["text"][name]
    return float(start + each * prompts)


def vae_bytes(what: str, area: int) -> int:
    """What the VAE holds beside its weights to "encode" or "decode" an image of so many pixels, in full precision."""
    start, each = _whole_table()["vae"][what]
    return int(_WORKSPACES[what] * (start + each * area))


def prediction_bytes(how: str, model: Anatomy, family: str, area: int) -> tuple[float, float]:
    """The activations of the UNet while it draws images of so many pixels, as (a, b) of a + b x predictions at once.

    `how` is "half" where the UNet is in half precision, "half/autocast" where autocast is around it too, "mixed" where
    it is in full precision under autocast, "no" where it computes in full precision.
    """
    start, each = _whole_table()["drawing"][_counted(family)][how]
    width = model.outputs / full_size(_counted(family)).outputs
    return start * width, each * width * area / LATENT_FACTOR**2


def families() -> Mapping[str, Any]:
    """What was counted of each family."""
    counted: Mapping[str, Any] = _whole_table()["families"]
    return counted


def _counted(family: str) -> str:
    """The family that stands for one in the table."""
    return family if family in FAMILIES else "sd1"


def _evaluated(row: Mapping[str, Any], counted: Anatomy, size: StepSize) -> Moments:
    """A row of the table, scaled from the model that was counted to another: a moment's bytes are a sum of terms, each
    with a factor of the row."""
    width, weights = size.model.outputs / counted.outputs, size.model.unet / counted.unet
    batch, pixels, rank = size.batch, size.batch * size.pixels, size.rank
    terms = [weights, batch * width, pixels * width, rank * width, pixels * rank * width]
    return [
        (share, sum(factor * term for factor, term in zip(factors, terms)))
        for share, factors in zip(row["gradients"], row["bytes"])
    ]


def _sd1_peak(row: Mapping[str, Any], size: StepSize) -> float:
    """The most that a row's moments hold on SD 1 itself."""
    sd1 = full_size("sd1")
    return max(held for _, held in _evaluated(row, sd1, StepSize(sd1, "sd1", size.batch, size.pixels, size.rank)))


@cache
def _whole_table() -> Mapping[str, Any]:
    table: Mapping[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return table
