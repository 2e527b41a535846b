"""What was counted of models of full size, and what it says of other batches, sizes, ranks and widths.

`footprint.json` has, for each kind of training step, what it holds beside weights, optimizer and gradients, at fourteen
moments: the forward pass, the backward pass until its first gradient, and twelve parts of what follows; and what
reading texts, encoding and decoding pictures, and the UNet's predictions while drawing hold. `python -m dreambooth
bench memory` makes it (see engine/bench/footprint.py). Models of other widths are scaled by what their layers put out.
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

TABLE = Path(__file__).with_name("footprint.json")
FAMILIES = ("sd1", "sd2", "sdxl")
OWN_RESOLUTION = {"sd1": 512, "sd2": 768, "sdxl": 1024}
# The VAE's convolutions work on whole pictures, for which a card's library takes room of its own, and gaps are left;
# that was not counted, and is taken to be so many times as much in all, until it is measured.
_WORKSPACES = {"encode": 1.2, "decode": 1.5}
LATENT = 8  # pixels a latent, along each side

Moments = list[tuple[float, float]]  # at each, the share of the gradients that are there, and bytes of everything else


@cache
def full_size(family: str) -> Anatomy:
    return anatomy.from_json(families()[family])


@dataclass(frozen=True)
class Kind:
    """A kind of step: what is trained (full, a kind of LoRA, or an embedding), of which layers, in which precision."""

    trained: str
    layers: str
    precision: str

    @property
    def name(self) -> str:
        return f"{self.trained}/{self.layers}/{self.precision}"

    @property
    def usual(self) -> Kind:
        """The one that was counted for every family."""
        if self.trained == "embedding":
            return Kind("embedding", "none", "mixed")
        return Kind("full", "all", "mixed") if self.trained == "full" else Kind("lora", "transformer", "mixed")


@dataclass(frozen=True)
class Size:
    """Of what, and how much of it: pictures, latent pixels of each, the LoRA's mean rank or 0."""

    model: Anatomy
    family: str
    batch: int
    pixels: int
    rank: float


def moments(kind: Kind, end: str, size: Size) -> Moments:
    """What a step of the UNet holds. `end` is checkpointed where all blocks are, or whole where none is."""
    steps, first = families()[_known(size.family)]["steps"], families()["sd1"]["steps"]
    wanted, usual = f"{kind.name}/{end}", f"{kind.usual.name}/{end}"
    counted = full_size(_known(size.family))
    if wanted in steps:
        return _evaluated(steps[wanted], counted, size)
    # Counted on SD 1 alone: as much more or less than the usual kind as there.
    ratio = _peak(first[wanted if wanted in first else usual], size) / _peak(first[usual], size)
    return [(share, ratio * bytes_) for share, bytes_ in _evaluated(steps[usual], counted, size)]


def text(family: str, name: str, prompts: float) -> float:
    """What text encoders hold that learn from so many prompts of 75 tokens at once."""
    start, each = families()[_known(family)]["text"][name]
    return float(start + each * prompts)


def picture(what: str, area: int) -> int:
    """What it holds to encode or decode a picture of so many pixels, in full precision."""
    start, each = _whole_table()["vae"][what]
    return int(_WORKSPACES[what] * (start + each * area))


def prediction(how: str, model: Anatomy, family: str, area: int) -> tuple[float, float]:
    """What the UNet's predictions hold while drawing pictures of so many pixels, (a, b): a + b for each prediction.

    `how` is half where the UNet is in half precision, half/autocast where autocast is around it too, mixed where it is
    in full precision under autocast, no where it computes in full precision.
    """
    start, each = _whole_table()["drawing"][_known(family)][how]
    wider = model.outputs / full_size(_known(family)).outputs
    return start * wider, each * wider * area / LATENT**2


def families() -> Mapping[str, Any]:
    found: Mapping[str, Any] = _whole_table()["families"]
    return found


def _known(family: str) -> str:
    return family if family in FAMILIES else "sd1"


def _evaluated(row: Mapping[str, Any], counted: Anatomy, size: Size) -> Moments:
    """A row of the table, scaled to the model."""
    model, batch, pixels, rank = size.model, size.batch, size.pixels, size.rank
    wider, larger = model.outputs / counted.outputs, model.unet / counted.unet
    values = [larger, batch * wider, batch * pixels * wider, rank * wider, batch * pixels * rank * wider]
    return [
        (share, sum(one * value for one, value in zip(plane, values)))
        for share, plane in zip(row["gradients"], row["bytes"])
    ]


def _peak(row: Mapping[str, Any], size: Size) -> float:
    made = full_size("sd1")
    return max(bytes_ for _, bytes_ in _evaluated(row, made, Size(made, "sd1", size.batch, size.pixels, size.rank)))


@cache
def _whole_table() -> Mapping[str, Any]:
    table: Mapping[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return table
