"""Where in a picture its crop lies. Pure arithmetic, so that the page draws the very frame that training cuts out."""

from __future__ import annotations

import random
from collections.abc import Sequence

from dreambooth.core.buckets import Bucket, widest
from dreambooth.core.focal_point import FocalPoint
from dreambooth.core.settings.dataset import Pictures

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels of the upright picture
Size = tuple[float, float]  # width and height, in pixels

MIDDLE = (0.5, 0.5)
SLACK = 0.25  # a crop that is drawn around a point has it in its middle half
_DRAWS = 8


def window(size: tuple[int, int], bucket: Bucket, point: FocalPoint | None = None) -> Size:
    """How much of a picture is cut out: the largest part of the bucket's shape, or as much tighter as was chosen and as
    can be without being enlarged."""
    width, height = widest(size, bucket)
    tighter = 1.0 if point is None else min(point.zoom, most_zoom(size, bucket))
    return min(width / tighter, size[0]), min(height / tighter, size[1])


def most_zoom(size: tuple[int, int], bucket: Bucket) -> float:
    """How much tighter than the largest a crop can be that is not enlarged for it; at least 1."""
    return max(1.0, widest(size, bucket)[0] / bucket.width)


def is_a_choice(size: tuple[int, int], bucket: Bucket) -> bool:
    """Whether a picture has anything to choose: not, where all of it is kept and no part could be."""
    return widest(size, bucket) != size or most_zoom(size, bucket) > 1


def drawn(name: str, seed: int, number: int) -> list[float]:
    """The random numbers of a variant of the picture called `name`, from 0 to 1. The first two say how far to the right
    and down a random crop lies."""
    draw = random.Random(f"{seed}/{name}/{number}".encode("utf-8", "surrogatepass"))
    return [draw.random() for _ in range(_DRAWS)]


def first(
    name: str, size: tuple[int, int], bucket: Bucket, choice: Pictures, seed: int, point: FocalPoint | None
) -> Box | None:
    """The crop of a picture's first variant; None for a smart one, for which the picture has to be looked at."""
    if point is None and choice.crop == "smart":
        return None
    place = drawn(name, seed, 0) if choice.crop == "random" else MIDDLE
    return box(size, window(size, bucket, point), place, point)


def box(
    size: tuple[int, int], window: Size, place: Sequence[float], point: FocalPoint | None = None, slack: float = 0
) -> Box:
    """A crop of the size `window`, at a place from 0 (left, top) to 1 (right, bottom) of all that there are.

    Those around a point have it in their middle as far as the picture allows, or off it by up to `slack`, as a share of
    the crop.
    """
    at = (None, None) if point is None else (point.x * size[0], point.y * size[1])
    left, top = (start(0, size[n], window[n], place[n], at[n], slack) for n in (0, 1))
    return left, top, min(size[0], left + window[0]), min(size[1], top + window[1])


def start(low: float, high: float, length: float, place: float, at: float | None, slack: float) -> float:
    """Where a length begins between `low` and `high`, by a place from 0 to 1 of all that there are: those with `at` in
    their middle, or off it by up to `slack` of the length, as far as the ends allow."""
    if at is None:
        return low + (high - low - length) * place
    first, last = (min(max(at - share * length, low), high - length) for share in (0.5 + slack, 0.5 - slack))
    return first + (last - first) * place
