"""The mask of a picture, which weighs the loss: from a file beside it, or from the picture's own transparency."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from dreambooth.core import picture_files
from dreambooth.core.errors import UserError
from dreambooth.core.files import paths
from dreambooth.core.settings import Settings
from dreambooth.engine.data import decoding, prefetch

_OTHER_SHAPE = 0.02  # how much a mask's aspect ratio may differ from the picture's


def file_of(picture: Path) -> Path | None:
    """The file that holds a picture's mask; None where there is none."""
    return next(filter(paths.is_file, picture_files.masks_of(picture)), None)


def decode(picture: Path) -> Image.Image | None:
    """The mask of an upright picture, mode L, in its size, white where it counts; None where it has none.

    Raises UserError for a mask that is damaged or of another aspect ratio.
    """
    width, height, _ = decoding.measure(picture)
    file = file_of(picture)
    if file is None:
        return decoding.decode_alpha(picture)
    mask = decoding.decode(file, ground=0).convert("L")  # where nothing was painted, nothing counts
    if abs(mask.width * height / (mask.height * width) - 1) > _OTHER_SHAPE:
        raise UserError(
            f"{file}: this mask has {mask.width} x {mask.height} pixels and its picture {width} x {height}; "
            "make both of one shape."
        )
    return mask.resize((width, height), Image.Resampling.BILINEAR)


def check_all(pictures: Iterable[Path]) -> None:
    """Raises UserError naming the first picture whose mask cannot be used."""
    for _ in prefetch.in_order(_check, pictures, workers=prefetch.FEW):
        pass


def _check(picture: Path) -> None:
    decode(picture)


def problem(settings: Settings, pictures: Iterable[Path]) -> str:
    """What is wrong where pictures are to be masked and none has a mask; empty where nothing is."""
    if not settings.objective.masked or any(file_of(path) or decoding.decode_alpha(path) for path in pictures):
        return ""
    return (
        "objective.masked: none of your pictures has a mask; put NAME-mask.png beside a picture or masks/NAME.png "
        "below it, use pictures with transparency, or switch it off."
    )
