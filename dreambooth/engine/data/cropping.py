"""How a picture is cut to its bucket, and how its variants differ. Everything follows from the picture's name, its
size, the seed and the point that was chosen for it, so a plan shows exactly what training will see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import cos, radians, sin

from PIL import Image, ImageEnhance

from dreambooth.core import crops
from dreambooth.core.buckets import Bucket
from dreambooth.core.crops import Box
from dreambooth.core.focal_point import FocalPoint
from dreambooth.core.settings.dataset import Pictures
from dreambooth.engine.data import saliency

_TURNS = (1.0, 0.5, 0.25)  # of the angle that was drawn, until the focal point stays in the crop


@dataclass(frozen=True)
class Crop:
    """One variant of a picture: `box` is cut out and resized to `bucket`, then rotated, mirrored, and changed in
    brightness and colour."""

    bucket: Bucket
    box: Box
    source: tuple[int, int]  # width and height of the upright picture, in pixels
    degrees: float = 0.0
    mirrored: bool = False
    brightness: float = 1.0
    colour: float = 1.0

    @property
    def enlarged(self) -> float:
        """How many times the picture grows; below 1 it shrinks."""
        return self.bucket.width / (self.box[2] - self.box[0])

    @property
    def grown(self) -> float:
        """How many times more it is enlarged to be rotated, so that nothing from outside the box comes in."""
        width, height = self.bucket.width, self.bucket.height
        across, up = cos(radians(abs(self.degrees))), sin(radians(abs(self.degrees)))
        return max((width * across + height * up) / width, (width * up + height * across) / height)

    @property
    def conditions(self) -> list[int]:
        """SDXL's size conditions, in pixels: height and width of the file, top and left corner of the crop once
        the picture is resized, height and width of the crop (Podell et al. 2023, section 2.2)."""
        left = self.source[0] - self.box[2] if self.mirrored else self.box[0]
        corner = [round(self.box[1] * self.enlarged), round(left * self.enlarged)]
        return [self.source[1], self.source[0], *corner, self.bucket.height, self.bucket.width]

    def shows(self, point: FocalPoint) -> bool:
        """Whether a point of the picture is in the crop once it is rotated."""
        left, top, right, bottom = self.box
        scale = self.enlarged * self.grown
        across = (point.x * self.source[0] - (left + right) / 2) * scale
        down = (point.y * self.source[1] - (top + bottom) / 2) * scale
        along, over = cos(radians(self.degrees)), sin(radians(self.degrees))
        turned = across * along + down * over, down * along - across * over
        return abs(turned[0]) <= self.bucket.width / 2 and abs(turned[1]) <= self.bucket.height / 2


def cuts(
    name: str,
    size: tuple[int, int],
    bucket: Bucket,
    choice: Pictures,
    seed: int,
    look: Callable[[], Image.Image],
    point: FocalPoint | None = None,
) -> list[Crop]:
    """All variants of a picture called `name` of `size` (width, height) pixels.

    The first is only cropped. A `point` that a person has chosen is the middle of it, before all other rules for crops,
    and is in all variants. `look` returns the picture, small, and is called only where the crop depends on it.
    """
    window = crops.window(size, bucket, point)
    box = crops.first(name, size, bucket, choice, seed, point)
    if box is None:
        small = look()
        place = saliency.best_window(small, window[0] / size[0] * small.width, window[1] / size[1] * small.height)
        box = crops.box(size, window, place)
    whole = Crop(bucket, box, size)
    all_crops = [whole]
    for number in range(1, variants(choice, size, bucket, point)):
        draws = crops.drawn(name, seed, number)
        if choice.crop == "random":
            whole = replace(whole, box=crops.box(size, window, draws, point, crops.SLACK))
        all_crops.append(_variant(whole, choice, number, draws, point))
    return all_crops


def centred(size: tuple[int, int], bucket: Bucket) -> Crop:
    """The middle of a picture of `size` (width, height) pixels, as much of it as the bucket's shape lets in."""
    return Crop(bucket, crops.box(size, crops.window(size, bucket), crops.MIDDLE), size)


def variants(choice: Pictures, size: tuple[int, int], bucket: Bucket, point: FocalPoint | None = None) -> int:
    """How many variants a picture has that differ: 1 where nothing is chosen, and mirroring alone makes 2."""
    differs = choice.rotation or choice.brightness or choice.colour or choice.crop_jitter
    if differs or (choice.crop == "random" and crops.window(size, bucket, point) != size):
        return choice.variants
    return min(2, choice.variants) if choice.hflip else 1


def _variant(whole: Crop, choice: Pictures, number: int, draws: Sequence[float], point: FocalPoint | None) -> Crop:
    """A crop varied by random draws; the point stays in it, in its middle half as far as possible."""
    angle, light, colour, zoom, jitter_x, jitter_y = draws[2:]
    left, top, right, bottom = whole.box
    kept = 1 - choice.crop_jitter * zoom
    width, height = (right - left) * kept, (bottom - top) * kept
    at = (None, None) if point is None else (point.x * whole.source[0], point.y * whole.source[1])
    left = crops.start(left, right, width, jitter_x, at[0], crops.SLACK)
    top = crops.start(top, bottom, height, jitter_y, at[1], crops.SLACK)
    variant = replace(
        whole,
        box=(left, top, min(right, left + width), min(bottom, top + height)),
        degrees=choice.rotation * (2 * angle - 1),
        mirrored=choice.hflip and number % 2 == 1,
        brightness=1 + choice.brightness * (2 * light - 1),
        colour=1 + choice.colour * (2 * colour - 1),
    )
    if point is None:
        return variant
    turned = (replace(variant, degrees=variant.degrees * share) for share in _TURNS)
    return next((one for one in turned if one.shows(point)), replace(variant, degrees=0.0))


def apply(image: Image.Image, cut: Crop) -> Image.Image:
    """The variant itself: an RGB picture of the bucket's size."""
    picture = shape(image, cut)
    if cut.brightness != 1:
        picture = ImageEnhance.Brightness(picture).enhance(cut.brightness)
    if cut.colour != 1:
        picture = ImageEnhance.Color(picture).enhance(cut.colour)
    return picture


def shape(image: Image.Image, cut: Crop) -> Image.Image:
    """A picture or its mask cut, resized, rotated and mirrored to the bucket's size, in its own colours."""
    if cut.degrees:
        shaped = _turned(image, cut)
    else:
        shaped = image.resize((cut.bucket.width, cut.bucket.height), Image.Resampling.LANCZOS, box=cut.box)
    return shaped.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if cut.mirrored else shaped


def _turned(image: Image.Image, cut: Crop) -> Image.Image:
    """The box rotated about its middle. It is enlarged a little, so that nothing from outside the picture comes in."""
    width, height = cut.bucket.width, cut.bucket.height
    large = (round(width * cut.grown) + 2, round(height * cut.grown) + 2)
    whole = image.resize(large, Image.Resampling.LANCZOS, box=cut.box).rotate(cut.degrees, Image.Resampling.BICUBIC)
    left, top = (large[0] - width) // 2, (large[1] - height) // 2
    return whole.crop((left, top, left + width, top + height))
