"""Shapes of training pictures: few, of about the same area, and near to the shapes of the photos.

Pure arithmetic. A bucket's area is never above that of the square, so no batch needs more memory than a square one.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

from dreambooth.core.errors import UserError
from dreambooth.core.settings.dataset import Pictures


@dataclass(frozen=True, order=True)
class Bucket:
    """Width and height of training pictures, in pixels."""

    width: int
    height: int

    @property
    def area(self) -> int:
        return self.width * self.height

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True)
class Grid:
    """The buckets of a run, and which picture goes into which."""

    buckets: tuple[Bucket, ...]
    step: int
    smallest: int  # side, in pixels
    no_upscale: bool

    def bucket(self, width: int, height: int) -> Bucket:
        """The one bucket of a picture of this size, in pixels: that with the nearest ratio of width to height.

        Without enlarging, only buckets count that the picture covers; a picture that covers none is its own bucket,
        cut down to whole steps. Only a picture below the smallest side is enlarged even then.
        """
        if not self.no_upscale:
            return nearest(width, height, self.buckets)
        covered = tuple(one for one in self.buckets if one.width <= width and one.height <= height)
        if covered:
            return nearest(width, height, covered)
        if len(self.buckets) == 1:
            side = self._cut_down(min(width, height))
            return Bucket(side, side)
        return Bucket(self._cut_down(width), self._cut_down(height))

    def _cut_down(self, side: int) -> int:
        longest = max(one.width for one in self.buckets)
        return max(self.smallest, min(side, longest) // self.step * self.step)


def grid(choice: Pictures, resolution: int) -> Grid:
    """The buckets that the settings ask for. Raises UserError for bounds that leave out the square of `resolution`."""
    low, high, step = choice.bucket_min_side, choice.bucket_max_side, choice.bucket_step
    low = low or -(-resolution // 2 // step) * step
    high = high or 2 * resolution
    problems = []
    if low > resolution:
        problems.append(f"pictures.bucket_min_side: {low} is above the resolution, {resolution}; lower it (0 is half).")
    if high < resolution:
        problems.append(
            f"pictures.bucket_max_side: {high} is below the resolution, {resolution}; raise it (0 is twice)."
        )
    if problems:
        raise UserError(problems)
    shapes = buckets(resolution, step, low, high) if choice.buckets else [Bucket(resolution, resolution)]
    return Grid(tuple(shapes), step, min(low, resolution), choice.no_upscale)


def buckets(resolution: int, step: int, low: int, high: int) -> list[Bucket]:
    """All buckets with sides from `low` to `high` that are multiples of `step`, narrowest first: for each side the
    longest other side that keeps the area within that of the square."""
    found = {Bucket(resolution, resolution)}
    for side in range(low, high + 1, step):
        other = min(high, resolution * resolution // side // step * step)
        if other >= low:
            found |= {Bucket(side, other), Bucket(other, side)}
    return sorted(found)


def nearest(width: int, height: int, among: tuple[Bucket, ...]) -> Bucket:
    """The bucket whose ratio of width to height is nearest; of equally near ones the largest."""
    wanted = log(width / height)
    return min(among, key=lambda one: (abs(log(one.width / one.height) - wanted), -one.area, one))


def widest(size: tuple[int, int], bucket: Bucket) -> tuple[float, float]:
    """The largest part of a picture that has the bucket's shape: width and height in pixels."""
    ratio = bucket.width / bucket.height
    if size[0] / size[1] >= ratio:
        return ratio * size[1], float(size[1])
    return float(size[0]), size[0] / ratio
