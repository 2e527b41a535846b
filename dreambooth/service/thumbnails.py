"""A picture as a browser shows it: how large it is, small, and whole, also where it is of a kind that only the engine's
Python reads.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

from dreambooth.core import picture_files
from dreambooth.core.errors import UserError
from dreambooth.core.picture_opening import open_picture, upright_size
from dreambooth.service import engine_pictures

SIDES = (32, engine_pictures.LARGEST)  # of thumbnails, in pixels
MOST_PIXELS = 120_000_000
_NOT_FOR_BROWSERS = (".heic", ".heif", ".hif", ".tif", ".tiff")


def size(path: Path) -> tuple[int, int]:
    """Width and height in pixels, turned as the camera says. Raises UserError for what cannot be read."""
    try:
        return _size(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise UserError(f"{path}: the picture cannot be read ({error.strerror or error}).") from None


@lru_cache(maxsize=20_000)
def _size(path: Path, changed: int) -> tuple[int, int]:
    try:
        with open_picture(path) as opened:
            return upright_size(opened)
    except Exception as error:  # noqa: BLE001  (Pillow raises nearly anything on a damaged file)
        if _is_strange(path, error):
            return engine_pictures.size(path, lambda: picture_files.find(path.parent))
        raise _unreadable(path, error) from None


def thumbnail(path: Path, side: int) -> bytes:
    """A JPEG of at most `side` pixels, turned as the camera says. Raises UserError for what cannot be read."""
    side = max(SIDES[0], min(side, SIDES[1]))
    try:
        with open_picture(path) as opened:
            return _jpeg(path, opened, side)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001
        if not _is_strange(path, error):
            raise _unreadable(path, error) from None
    with open_picture(BytesIO(engine_pictures.jpeg(path))) as opened:
        return _jpeg(path, opened, side)


def whole(path: Path) -> bytes | None:
    """A JPEG as large as the picture, of a kind that browsers do not show; None of one that they show themselves.

    Raises UserError for what cannot be read.
    """
    return None if path.suffix.lower() not in _NOT_FOR_BROWSERS else engine_pictures.jpeg(path, whole=True)


@contextmanager
def readable(path: Path) -> Iterator[Path]:
    """The picture's file, or a copy for as long as this lasts where this process's Pillow cannot read it.

    Raises UserError where the engine cannot read it either.
    """
    try:
        with open_picture(path):
            pass
    except Exception as error:  # noqa: BLE001
        if not _is_strange(path, error):
            raise _unreadable(path, error) from None
    else:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / f"{path.stem}.jpg"
        copy.write_bytes(engine_pictures.jpeg(path))
        yield copy


def _is_strange(path: Path, error: Exception) -> bool:
    """Whether a file that Pillow does not know is one for the engine's."""
    from PIL import UnidentifiedImageError

    return isinstance(error, UnidentifiedImageError) and engine_pictures.is_one(path)


def _jpeg(path: Path, opened: Any, side: int) -> bytes:
    """Raises UserError for a picture that is too large, and what Pillow raises."""
    # The WebUI brings Pillow; where the page is not, nobody asks for thumbnails.
    from PIL import Image, ImageOps

    if opened.width * opened.height > MOST_PIXELS:
        raise UserError(f"{path}: the picture is too large for a thumbnail ({opened.width}x{opened.height}).")
    opened.draft("RGB", (side, side))
    image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I"):  # 16 bits a value
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    image.thumbnail((side, side))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    out = BytesIO()
    image.convert("RGB").save(out, "JPEG", quality=85)
    return out.getvalue()


def _unreadable(path: Path, error: Exception) -> UserError:
    from PIL import Image, UnidentifiedImageError

    reason = str(error)[:100] or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        reason = "it is empty" if path.stat().st_size == 0 else "it is no picture"
    elif isinstance(error, Image.DecompressionBombError):
        reason = f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6:.0f} million pixels"
    return UserError(f"{path}: the picture cannot be read ({reason}).")
