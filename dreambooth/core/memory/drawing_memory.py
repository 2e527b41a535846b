"""How much memory drawing images takes, and how many are drawn together because of it.

A larger batch is faster only until the device is fully used; beyond that it only makes one wait longer for the first
image. That batch was measured on a CPU; for a GPU it is chosen with a margin.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from dreambooth.core.memory import footprint_table
from dreambooth.core.models.anatomy import Anatomy

MOST = 64  # images in a batch
LEAST = 4  # that a batch may have however large they are, if there is memory
CARD_PIXELS, CPU_PIXELS = 2**22, 2**16  # of a batch, beyond which it is no faster
USED = 0.85  # of the free memory; the rest is for fragmentation and the workspaces of kernels
TILE = 512  # pixels along each side of a tile that is decoded at a time
_DECODED_BYTES = 12  # of each pixel of a decoded image, kept until the batch is complete


@dataclass(frozen=True)
class Drawing:
    """What is drawn, and how."""

    model: Anatomy
    family: str
    how: str  # the UNet computes, as footprint_table.prediction_bytes has it
    area: int  # pixels of an image
    guided: bool = True  # by classifier-free guidance, which takes two predictions for each image
    decoding: str = "sliced"  # or whole or tiled
    fetched: int = 0  # bytes of streamed or quantized weights that are copied for their turn
    kept: int = 0  # bytes of the half-precision weights that autocast caches

    def bytes(self, count: int) -> int:
        """What drawing a batch holds beside the model's weights; those of the VAE are on the device only to decode."""
        start, each = footprint_table.prediction_bytes(self.how, self.model, self.family, self.area)
        predicting = start + each * count * (2 if self.guided else 1) + self.fetched
        decoding = self.model.vae * 4 + decoding_bytes(self.area, count, self.decoding)
        return int(max(predicting, decoding)) + self.kept

    def fitting(self, free: float, wanted: int, most: int, before: int = 0) -> int:
        """The batch size for `wanted` images with so many bytes free: at most `most`, in batches of about equal size.

        `before` is the batch size where earlier drawing goes on. It stays as long as it fits and is at least half of
        what would be chosen now, so that the remaining images come out the same to the last bit.
        """
        largest = next((n for n in range(most, 1, -1) if self.bytes(n) <= USED * free), 1)
        batch = ceil(wanted / ceil(wanted / largest)) if wanted else 1
        return before if batch <= 2 * before and self.bytes(before) <= free else batch


def decoding_bytes(area: int, count: int, how: str) -> int:
    """What decoding images of so many pixels holds beside the VAE's weights. `how` is whole, sliced or tiled."""
    if how == "whole":
        return footprint_table.vae_bytes("decode", area) * count
    at_once = min(area, TILE**2) if how == "tiled" else area
    return footprint_table.vae_bytes("decode", at_once) + _DECODED_BYTES * area * count


def most_together(area: int, *, on_card: bool) -> int:
    """The largest batch of images of so many pixels that is worth drawing, if there is memory for it."""
    return min(MOST, max(LEAST, (CARD_PIXELS if on_card else CPU_PIXELS) // area))
