"""Reading a picture of the miniature's world back: what is on it, and how like the subject it is.

The ground is the commonest colour along the border; what differs from it is the thing. Its colour is
compared with the world's colours, its outline with the world's outlines, in every tilt they are drawn in.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from dreambooth.engine.miniature import world

_GRID = 24  # outlines are compared on a grid of this many cells along each side
_TILTS = range(-20, 21, 5)

Array = np.ndarray


@dataclass(frozen=True)
class Reading:
    """What is recognised on a picture."""

    thing: str
    colour: str
    background: str
    fit: float  # overlap of the outline with the named thing's, 0 to 1

    def agrees(self, scene: world.Scene) -> bool:
        return (self.thing, self.colour, self.background) == (scene.thing, scene.colour, scene.background)


def read(picture: Image.Image) -> Reading:
    """Reads class, colour and background of the one thing on a picture."""
    pixels = _pixels(picture)
    ground, mask = _find_thing(pixels)
    cut = _cut_out(mask)
    fits = {thing: max(_overlap(cut, outline) for outline in _outlines(thing)) for thing in world.CLASSES}
    thing = max(fits, key=lambda name: fits[name])
    colour = _name(np.median(pixels[mask], axis=0)) if mask.any() else ""
    return Reading(thing, colour, _name(ground), fits[thing] if mask.any() else 0.0)


def likeness(picture: Image.Image, subject: Sequence[Image.Image]) -> float:
    """How like the subject's pictures a picture is, 0 to 1: the best match of outline and colours."""
    candidate = _portrait(picture)
    return max(_portrait_match(candidate, _portrait(other)) for other in subject)


def variety(pictures: Sequence[Image.Image]) -> float:
    """How much the things on several pictures differ in colour: mean distance of pairs, 0 to 1."""
    colours = []
    for picture in pictures:
        pixels = _pixels(picture)
        _, mask = _find_thing(pixels)
        colours.append(np.median(pixels[mask], axis=0) if mask.any() else pixels.mean((0, 1)))
    pairs = [np.linalg.norm(a - b) for i, a in enumerate(colours) for b in colours[i + 1 :]]
    return float(np.mean(pairs) / np.linalg.norm([255, 255, 255])) if pairs else 0.0


def _pixels(picture: Image.Image) -> Array:
    return np.asarray(picture.convert("RGB").resize((world.SIZE, world.SIZE)), dtype=np.float32)


def _find_thing(pixels: Array) -> tuple[Array, Array]:
    """The ground's colour (3,) and the mask (H, W) of the largest patch that differs from it."""
    border = np.concatenate(
        [
            pixels[:3].reshape(-1, 3),
            pixels[-3:].reshape(-1, 3),
            pixels[:, :3].reshape(-1, 3),
            pixels[:, -3:].reshape(-1, 3),
        ]
    )
    ground = np.median(border, axis=0)
    return ground, _largest_patch(np.linalg.norm(pixels - ground, axis=-1) > 60)


def _largest_patch(mask: Array) -> Array:
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:  # the largest label spreads through each patch
        padded = np.pad(labels, 1)
        spread = np.max(
            [padded[1:-1, 1:-1], padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]], axis=0
        )
        spread = np.where(mask, spread, 0)
        if (spread == labels).all():
            break
        labels = spread
    names, counts = np.unique(labels[labels > 0], return_counts=True)
    return labels == names[counts.argmax()] if len(names) else mask


def _cut_out(mask: Array) -> Array:
    """The mask's bounding box on the comparison grid, (GRID, GRID) in 0 to 1; zeros if there is nothing."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return np.zeros((_GRID, _GRID), dtype=np.float32)
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    image = Image.fromarray((box * 255).astype(np.uint8)).resize((_GRID, _GRID), Image.Resampling.BOX)
    return np.asarray(image, dtype=np.float32) / 255


def _overlap(a: Array, b: Array) -> float:
    union = np.maximum(a, b).sum()
    return float(np.minimum(a, b).sum() / union) if union else 0.0


@functools.cache
def _outlines(thing: str) -> tuple[Array, ...]:
    return tuple(_cut_out(np.asarray(_silhouette(thing, tilt)) > 127) for tilt in _TILTS)


def _silhouette(thing: str, tilt: float) -> Image.Image:
    image = Image.new("L", (200, 200), 0)
    pen = ImageDraw.Draw(image)
    turn = math.radians(tilt)
    for polygon, fill in zip(world.outline(thing), (255, 0)):
        turned = [
            (x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)) for x, y in polygon
        ]
        pen.polygon([(100 + 70 * x, 100 + 70 * y) for x, y in turned], fill=fill)
    return image


def _name(colour: Array) -> str:
    return min(world.COLOURS, key=lambda name: float(np.linalg.norm(colour - np.array(world.COLOURS[name]))))


def _portrait(picture: Image.Image) -> tuple[Array, Array]:
    """The thing's mask (GRID, GRID) and its colours (GRID, GRID, 3) inside its bounding box."""
    pixels = _pixels(picture)
    _, mask = _find_thing(pixels)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return np.zeros((_GRID, _GRID), np.float32), np.zeros((_GRID, _GRID, 3), np.float32)
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    colours = Image.fromarray(pixels.astype(np.uint8)).crop(box).resize((_GRID, _GRID), Image.Resampling.BOX)
    return _cut_out(mask), np.asarray(colours, dtype=np.float32)


def _portrait_match(a: tuple[Array, Array], b: tuple[Array, Array]) -> float:
    both = (a[0] > 0.5) & (b[0] > 0.5)
    if not both.any():
        return 0.0
    distance = np.linalg.norm(a[1] - b[1], axis=-1)[both]
    return _overlap(a[0], b[0]) * float(np.clip(1 - distance / 150, 0, 1).mean())
