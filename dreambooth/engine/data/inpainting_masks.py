"""Which parts of a picture an inpainting model learns to paint: its own mask where it has one, and large strokes and
boxes at random, as these models were trained with (LaMa's, Suvorov et al. 2021, arXiv 2109.07161, section 2.3).

Everything follows from the seed, the picture's name and the number of its variant.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sized
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from dreambooth.core.models.families import LATENT_FACTOR
from dreambooth.core.settings import Settings
from dreambooth.engine.data import cropping
from dreambooth.engine.data.cropping import Crop

HIDES_ALL = 0.25  # of all times a picture is masked as a whole, as often as these models were trained so
OF_CLASS = 2  # masks of a class picture, of which there are many
_PER_PICTURE, _LEAST = 8, 2  # masks of a training picture in all its variants together, and of each variant at least
_SHARE = (0.1, 0.8)  # of a picture that a mask covers
_WHITE = 128

Mask = np.ndarray  # (H, W) of bool, true for what is to be painted


def count(variants: int) -> int:
    """How many masks each variant of a training picture has."""
    return max(_LEAST, -(-_PER_PICTURE // variants))


def of_yours(examples: Iterable[Sized], settings: Settings) -> int:
    """How many masks each example has, given the variants of each training picture. Imagic has none, as its picture is
    drawn from a text alone."""
    return 0 if settings.imagic.enabled else count(min(len(variants) for variants in examples if variants))


def masks(name: str, variant: int, cut: Crop, own: Image.Image | None, many: int, seed: int) -> list[Mask]:
    """The masks of a picture's variant. `own` is the picture's own mask, upright and whole, mode L: every second mask
    is that, first as it is, then grown, since nobody masks a subject exactly."""
    shaped = None if own is None else np.asarray(cropping.shape(own, cut)) >= _WHITE
    return [_mask(f"{seed}/{name}/{variant}/mask {number}", number, cut, shaped) for number in range(many)]


def _mask(key: str, number: int, cut: Crop, own: Mask | None) -> Mask:
    draw = random.Random(key.encode("utf-8", "surrogatepass"))
    if own is not None and number % 2 == 0:
        mask = _grown(own, draw) if number else own
        if mask[::LATENT_FACTOR, ::LATENT_FACTOR].any():  # otherwise the crop has left nothing of it
            return mask
    return _drawn(draw, cut.bucket.width, cut.bucket.height)


def _grown(mask: Mask, draw: random.Random) -> Mask:
    """A mask grown by up to an eighth of the picture's side, in whole latents."""
    height, width = (side // LATENT_FACTOR for side in mask.shape)
    blocks = mask.reshape(height, LATENT_FACTOR, width, LATENT_FACTOR).any((1, 3))
    by = draw.randint(1, max(1, min(height, width) // 8))
    grown = Image.fromarray(blocks.astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(2 * by + 1))
    return np.asarray(grown).repeat(LATENT_FACTOR, 0).repeat(LATENT_FACTOR, 1) > 0


def _drawn(draw: random.Random, width: int, height: int) -> Mask:
    while True:
        image = Image.new("L", (width, height), 0)
        pen = ImageDraw.Draw(image)
        if draw.random() < 0.5:
            _boxes(draw, pen, width, height)
        else:
            _strokes(draw, pen, width, height)
        mask = np.asarray(image) > 0
        if _SHARE[0] <= mask.mean() <= _SHARE[1]:
            return mask


def _boxes(draw: random.Random, pen: ImageDraw.ImageDraw, width: int, height: int) -> None:
    for _ in range(draw.randint(1, 4)):
        wide, high = (round(side * draw.uniform(0.15, 0.75)) for side in (width, height))
        left, top = draw.randint(0, width - wide), draw.randint(0, height - high)
        pen.rectangle((left, top, left + wide, top + high), fill=255)


def _strokes(draw: random.Random, pen: ImageDraw.ImageDraw, width: int, height: int) -> None:
    """Broken lines with round ends, as a brush leaves them."""
    side = min(width, height)
    for _ in range(draw.randint(1, 3)):
        thick = side * draw.uniform(0.1, 0.35)
        x, y, angle = draw.uniform(0, width), draw.uniform(0, height), draw.uniform(0, 2 * pi)
        for _ in range(draw.randint(1, 5)):
            angle += draw.uniform(-2, 2)
            length = side * draw.uniform(0.15, 0.5)
            to_x = min(max(x + length * cos(angle), 0.0), width)
            to_y = min(max(y + length * sin(angle), 0.0), height)
            pen.line((x, y, to_x, to_y), fill=255, width=round(thick))
            for at_x, at_y in ((x, y), (to_x, to_y)):
                pen.ellipse((at_x - thick / 2, at_y - thick / 2, at_x + thick / 2, at_y + thick / 2), fill=255)
            x, y = to_x, to_y
