"""Opening a picture file with Pillow. Left to itself it goes by what a file holds and knows some forty formats, for one
of which it starts another program; here it reads the kinds that pictures for training are of, and no others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "GIF", "TIFF", "AVIF", "HEIF")


def open_picture(file: Path | BinaryIO) -> Any:
    """One of Pillow's pictures, of which the header is read. Raises what Pillow does; for a file of another kind
    UnidentifiedImageError."""
    # The WebUI brings Pillow, and so does the engine; the command line does without.
    from PIL import Image

    Image.init()  # some are of packages beside Pillow, which may come after it
    return Image.open(file, formats=[one for one in _FORMATS if one in Image.OPEN])
