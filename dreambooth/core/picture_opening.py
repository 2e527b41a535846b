"""Opening a picture file with Pillow. Left to itself it goes by what a file holds and knows some forty formats, for one
of which it starts another program; here it reads the kinds that pictures for training are of, and no others.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "GIF", "TIFF", "AVIF", "HEIF")
_ORIENTATION = 0x0112  # of EXIF
_TURNED = (5, 6, 7, 8)  # values of it that swap width and height
_WIDTH, _HEIGHT = 256, 257  # tags of a TIFF
_ABOUT = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")  # chunks of a PNG in which an orientation may stand


def open_picture(file: Path | BinaryIO) -> Any:
    """One of Pillow's pictures, of which the header is read. Raises what Pillow does; for a file of another kind
    UnidentifiedImageError."""
    # The WebUI brings Pillow, and so does the engine; the command line does without.
    from PIL import Image

    Image.init()  # some are of packages beside Pillow, which may come after it
    return Image.open(file, formats=[one for one in _FORMATS if one in Image.OPEN])


def is_container(path: Path) -> bool:
    """Whether a file is of the kind that HEIC and AVIF are of, which not every Pillow knows, whatever its name. Raises
    OSError where it cannot be read."""
    with path.open("rb") as file:
        return file.read(8)[4:] == b"ftyp"


def upright_size(image: Any) -> tuple[int, int]:
    """Width and height in pixels of one of Pillow's pictures that was only opened, turned as the camera says. Its
    pixels are not decoded. Raises what Pillow does on a damaged file."""
    width, height = image.size
    if image.format == "TIFF":  # Pillow swaps them for it, or does not, by its release
        width, height = image.tag_v2[_WIDTH], image.tag_v2[_HEIGHT]
    return (height, width) if _exif(image).get(_ORIENTATION) in _TURNED else (width, height)


def _exif(image: Any) -> Any:
    """For a PNG's Pillow decodes all of it first, as it may stand behind the pixels; mostly it does not."""
    from PIL import Image

    if image.format == "PNG" and not _tells_behind_pixels(image.fp):
        return Image.Image.getexif(image)
    return image.getexif()


def _tells_behind_pixels(file: BinaryIO) -> bool:
    """Whether a PNG has chunks behind its pixels in which an orientation may stand."""
    place, seen = file.tell(), False
    try:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if seen and kind in _ABOUT:
                return True
            seen = seen or kind == b"IDAT"
            file.seek(length + 4, os.SEEK_CUR)
        return False
    finally:
        file.seek(place)
