"""Writing pictures whole or not at all."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic


def write(picture: Image.Image, path: Path, about: PngInfo | None = None) -> None:
    """Writes a PNG. Raises OSError if it cannot be written, and then leaves a file that was there as it was."""
    with atomic.staged(path) as staged:
        picture.save(staged, format="PNG", pnginfo=about)


def write_or_refuse(picture: Image.Image, path: Path, kept: str, about: PngInfo | None = None) -> None:
    """Writes a PNG without which the job cannot go on. Raises UserError if it cannot be written, saying what is
    `kept`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(picture, path, about)
    except OSError as error:
        raise UserError(
            f"{path}: the picture cannot be written ({error.strerror or error}); mend that and start again, {kept}."
        ) from None
