"""How a picture is cut to its bucket, and how its variants differ. Everything follows from the picture's name, its
size and the seed, so a plan shows exactly what training will see."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from math import cos, radians, sin

from PIL import Image, ImageEnhance

from dreambooth.core.buckets import Bucket, widest
from dreambooth.core.settings.dataset import Pictures
from dreambooth.engine.data import focus

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels of the upright picture


@dataclass(frozen=True)
class Cut:
    """One variant of a picture: `box` is cut out and resized to `bucket`, then turned, mirrored and toned."""

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
    def conditions(self) -> list[int]:
        """What SDXL is told of a picture, in pixels: height and width of the file, top and left corner of the crop once
        the picture is resized, height and width of the crop (Podell et al. 2023, section 2.2)."""
        left = self.source[0] - self.box[2] if self.mirrored else self.box[0]
        corner = [round(self.box[1] * self.enlarged), round(left * self.enlarged)]
        return [self.source[1], self.source[0], *corner, self.bucket.height, self.bucket.width]


def cuts(
    name: str, size: tuple[int, int], bucket: Bucket, choice: Pictures, seed: int, look: Callable[[], Image.Image]
) -> list[Cut]:
    """All variants of a picture called `name` of `size` (width, height) pixels.

    The first is only cropped. `look` gives the picture, small, and is asked only where the crop depends on it.
    """
    width, height = widest(size, bucket)
    place = (0.5, 0.5)
    if choice.crop == "smart":
        small = look()
        place = focus.find(small, width / size[0] * small.width, height / size[1] * small.height)
    return [
        _variant(name, size, bucket, choice, seed, place, number) for number in range(variants(choice, size, bucket))
    ]


def centred(size: tuple[int, int], bucket: Bucket) -> Cut:
    """The middle of a picture of `size` (width, height) pixels, as much of it as the bucket's shape lets in."""
    return _placed(size, bucket, (0.5, 0.5))


def variants(choice: Pictures, size: tuple[int, int], bucket: Bucket) -> int:
    """How many variants a picture has that differ: 1 where nothing is chosen, and mirroring alone makes 2."""
    drawn = choice.rotation or choice.brightness or choice.colour or choice.crop_jitter
    if drawn or (choice.crop == "random" and widest(size, bucket) != size):
        return choice.variants
    return min(2, choice.variants) if choice.hflip else 1


def _variant(
    name: str,
    size: tuple[int, int],
    bucket: Bucket,
    choice: Pictures,
    seed: int,
    place: tuple[float, float],
    number: int,
) -> Cut:
    draw = random.Random(f"{seed}/{name}/{number}".encode("utf-8", "surrogatepass"))
    across, down, angle, light, colour, zoom, jitter_x, jitter_y = (draw.random() for _ in range(8))
    cut = _placed(size, bucket, (across, down) if choice.crop == "random" else place)
    if number == 0:
        return cut
    left, top, right, bottom = cut.box
    kept = 1 - choice.crop_jitter * zoom
    width, height = (right - left) * kept, (bottom - top) * kept
    left, top = left + (right - left - width) * jitter_x, top + (bottom - top - height) * jitter_y
    return Cut(
        bucket,
        (left, top, min(right, left + width), min(bottom, top + height)),
        size,
        degrees=choice.rotation * (2 * angle - 1),
        mirrored=choice.hflip and number % 2 == 1,
        brightness=1 + choice.brightness * (2 * light - 1),
        colour=1 + choice.colour * (2 * colour - 1),
    )


def _placed(size: tuple[int, int], bucket: Bucket, place: tuple[float, float]) -> Cut:
    """The largest cut, at a place from 0 (left, top) to 1 (right, bottom)."""
    width, height = widest(size, bucket)
    left, top = (size[0] - width) * place[0], (size[1] - height) * place[1]
    return Cut(bucket, (left, top, min(size[0], left + width), min(size[1], top + height)), size)


def apply(image: Image.Image, cut: Cut) -> Image.Image:
    """The variant itself: an RGB picture of the bucket's size."""
    made = shape(image, cut)
    if cut.brightness != 1:
        made = ImageEnhance.Brightness(made).enhance(cut.brightness)
    if cut.colour != 1:
        made = ImageEnhance.Color(made).enhance(cut.colour)
    return made


def shape(image: Image.Image, cut: Cut) -> Image.Image:
    """A picture or its mask cut, resized, turned and mirrored to the bucket's size, in its own tones."""
    made = (
        _turned(image, cut)
        if cut.degrees
        else image.resize((cut.bucket.width, cut.bucket.height), Image.Resampling.LANCZOS, box=cut.box)
    )
    if cut.mirrored:
        made = made.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return made


def _turned(image: Image.Image, cut: Cut) -> Image.Image:
    """The box turned about its middle. It is enlarged a little, so that nothing from outside the picture comes in."""
    width, height = cut.bucket.width, cut.bucket.height
    across, up = cos(radians(abs(cut.degrees))), sin(radians(abs(cut.degrees)))
    grown = max((width * across + height * up) / width, (width * up + height * across) / height)
    large = (round(width * grown) + 2, round(height * grown) + 2)
    whole = image.resize(large, Image.Resampling.LANCZOS, box=cut.box).rotate(cut.degrees, Image.Resampling.BICUBIC)
    left, top = (large[0] - width) // 2, (large[1] - height) // 2
    return whole.crop((left, top, left + width, top + height))
