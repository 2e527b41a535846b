"""Pictures for a process whose own Pillow cannot read them, such as a WebUI's that knows no HEIC."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from dreambooth.core.errors import UserError
from dreambooth.engine.data import decoding

_QUALITY = 90  # of a JPEG, which is only shown, never trained on


def sizes(paths: Iterable[Path]) -> Iterator[tuple[int, int] | str]:
    """Width and height in pixels of each picture, upright, from its header; the reason for one that cannot be read."""
    return map(_size, paths)


def _size(path: Path) -> tuple[int, int] | str:
    try:
        return decoding.measure(path)[:2]
    except UserError as error:
        return error.problems[0]


def jpeg(path: Path, side: int) -> bytes:
    """A picture as a JPEG, upright, in sRGB and at most `side` pixels long; 0 keeps its size.

    Raises UserError naming the file and the mend.
    """
    image, written = decoding.decode(path, smallest=side), io.BytesIO()
    if side:
        image.thumbnail((side, side))
    image.save(written, "JPEG", quality=_QUALITY)
    return written.getvalue()
