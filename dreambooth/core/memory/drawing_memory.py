"""How much memory drawing takes, and how many pictures are drawn together for it.

More of them keep a device busier, until it is busy; beyond that they only make the wait for the first of them longer.
How many that are was measured on a CPU; a card gets as many as leave no doubt.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from dreambooth.core.memory import footprint_table
from dreambooth.core.models.anatomy import Anatomy

MOST = 64  # pictures
LEAST = 4  # that are tried for, however large
CARD_PIXELS, CPU_PIXELS = 2**22, 2**16  # of pictures that are drawn together, as far as more would be quicker
USED = 0.85  # of what is free: there are gaps in it, and kernels take room of their own
TILE = 512  # pixels; what is decoded at a time in tiles, along each side
_DECODED_BYTES = 12  # of each pixel of a picture until all are there


@dataclass(frozen=True)
class Drawing:
    """What is drawn: by which UNet, how it computes (see `counted.prediction`), pictures of how many pixels, with
    guidance or not, and decoded whole, sliced or tiled; the bytes of weights that the UNet fetches for a while, and of
    those that autocast keeps in half precision too."""

    model: Anatomy
    family: str
    how: str
    area: int
    guided: bool = True
    decoding: str = "sliced"
    fetched: int = 0
    kept: int = 0

    def bytes(self, count: int) -> int:
        """What drawing so many together holds beside what lies on the device anyway; the VAE comes only to decode."""
        start, each = footprint_table.prediction_bytes(self.how, self.model, self.family, self.area)
        predicting = start + each * count * (2 if self.guided else 1) + self.fetched
        decoding = self.model.vae * 4 + decoding_bytes(self.area, count, self.decoding)
        return int(max(predicting, decoding)) + self.kept

    def fitting(self, free: float, wanted: int, most: int, before: int = 0) -> int:
        """How many to draw together with so many bytes free: parts of about the same size of those that are wanted.

        `before` is how many were drawn together where this goes on; that stays, as long as it fits and is no less than
        half of what would be taken now, so that pictures that are still to come are the same to the last bit.
        """
        room = next((n for n in range(most, 1, -1) if self.bytes(n) <= USED * free), 1)
        number = ceil(wanted / ceil(wanted / room)) if wanted else 1
        return before if number <= 2 * before and self.bytes(before) <= free else number


def decoding_bytes(area: int, count: int, how: str) -> int:
    """What decoding pictures of so many pixels holds beside the VAE. `how` is whole, sliced or tiled."""
    if how == "whole":
        return footprint_table.vae_bytes("decode", area) * count
    at_once = min(area, TILE**2) if how == "tiled" else area
    return footprint_table.vae_bytes("decode", at_once) + _DECODED_BYTES * area * count


def most_together(area: int, *, on_card: bool) -> int:
    """How many pictures of so many pixels are worth drawing together, as far as there is room."""
    return min(MOST, max(LEAST, (CARD_PIXELS if on_card else CPU_PIXELS) // area))
