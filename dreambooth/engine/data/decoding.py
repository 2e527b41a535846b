"""Any picture file as what training needs: upright, in RGB as sRGB, 8 bits a colour, on white."""

from __future__ import annotations

import functools
import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from dreambooth.core import captions
from dreambooth.core.errors import UserError
from dreambooth.core.picture_opening import is_container, open_picture, upright_size

warnings.filterwarnings("ignore", module=r"PIL\.")  # odd metadata is not the person's problem

SUFFIXES = captions.PICTURES
_DAMAGE = (OSError, ValueError, SyntaxError, EOFError, MemoryError)  # what Pillow raises for files that are not whole
_BYTES_A_PIXEL = 4  # as Pillow keeps RGB
_ROUNDED = 2  # of 255, how far a profile of sRGB may be off
_AT_ONCE = 2  # of the same picture: as it is in the file, and turned or in other colours


def decode(path: Path, smallest: int = 0, ground: int = 255) -> Image.Image:
    """The picture upright and in RGB; what is transparent lies on `ground`, white, of an animation the first picture is
    taken.

    With `smallest`, a JPEG may come out smaller, down to that many pixels along its shorter side, which is several
    times faster. Raises UserError naming the file and the mend.
    """
    try:
        return _rgb(_upright(path, smallest), ground)
    except _DAMAGE as error:
        raise unreadable(path, error) from None


def _upright(path: Path, smallest: int) -> Image.Image:
    """The picture in its own mode; what else was read of its file is let go of."""
    with _open(path) as image:
        if smallest:
            _draft(image, smallest)
        image.load()
        return ImageOps.exif_transpose(image)


def bytes_of(area: int) -> int:
    """What a decoded picture of so many pixels takes."""
    return _BYTES_A_PIXEL * area


def most_bytes(area: int) -> int:
    """The most that decoding one holds."""
    return _AT_ONCE * bytes_of(area)


def decode_alpha(path: Path) -> Image.Image | None:
    """How opaque the upright picture is, mode L from 0 to 255; None where it has no transparency.

    Raises UserError naming the file and the mend.
    """
    with _open(path) as image:
        try:
            if not image.has_transparency_data:
                return None
            image.load()
            return ImageOps.exif_transpose(image).convert("RGBA").getchannel("A")
        except _DAMAGE as error:
            raise unreadable(path, error) from None


def measure(path: Path) -> tuple[int, int, int]:
    """Width and height of the upright picture, in pixels, and how many pictures the file holds: its header is read.

    Raises UserError naming the file and the mend.
    """
    with _open(path) as image:
        try:
            width, height = upright_size(image)
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # MPO: a photo and its depth
            return width, height, frames
        except _DAMAGE as error:
            raise unreadable(path, error) from None


def _open(path: Path) -> Image.Image:
    try:
        if is_container(path):
            _reads_heic()
        return open_picture(path)
    except _DAMAGE as error:
        raise unreadable(path, error) from None
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise UserError(
            f"{path}: this picture cannot be read (it has more than {most:.0f} million pixels); make it smaller."
        ) from None


def unreadable(path: Path, error: Exception) -> UserError:
    """What is said of a picture that cannot be read."""
    reason = str(error).splitlines()[0] if str(error) else "damaged"
    if isinstance(error, UnidentifiedImageError):
        reason = "it is empty" if path.stat().st_size == 0 else "it is no picture"
        if is_container(path):
            reason = "it is damaged or no picture" if _reads_heic() else "the engine's Python has no pi-heif"
    elif "truncated" in reason or "end of file" in reason:
        reason = "it is cut short"
    elif isinstance(error, PermissionError):
        reason = "permission denied"
    return UserError(f"{path}: this picture cannot be read ({reason}); replace or remove it.")


def _draft(image: Image.Image, smallest: int) -> None:
    """Lets a JPEG be decoded at a half, a quarter or an eighth, with its shorter side at least `smallest`."""
    width, height = image.size
    scale = max(1.0, min(width, height) / smallest)
    image.draft(None, (int(width / scale), int(height / scale)))


def _rgb(image: Image.Image, ground: int) -> Image.Image:
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):  # 16 bits a pixel
        image = _eight_bits(np.asarray(image, dtype=np.float32) / 257)
    elif image.mode == "F":  # light from 0 to 1, or from 0 to 255
        values = np.nan_to_num(np.asarray(image))
        image = _eight_bits(values * 255 if values.max(initial=0) <= 1 else values)
    image, alpha = _apart(image)
    if profile:  # of the colours alone, and before they are mixed with the ground's, which is sRGB
        image = _srgb(image, profile)
    if image.mode == "LAB":
        image = ImageCms.profileToProfile(image, ImageCms.createProfile("LAB"), _SRGB, outputMode="RGB")
    if image.mode != "RGB":
        image = image.convert("RGB")
    return image if alpha is None else _on(image, alpha, ground)


def _apart(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The colours in a mode that a colour profile can be for, and how opaque they are, if not all are."""
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("LA" if image.mode in ("1", "L", "LA", "La") else "RGBA")
        return image.convert(image.mode.removesuffix("A")), image.getchannel("A")
    return (image.convert("RGB") if image.mode == "P" else image), None


def _on(image: Image.Image, alpha: Image.Image, ground: int) -> Image.Image:
    image.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", image.size, (ground, ground, ground, 255)), image).convert("RGB")


def _eight_bits(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def _srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Colours of another space, such as a phone's Display P3 or a printer's CMYK, as sRGB; left where that fails."""
    try:
        return image if _is_srgb(profile, image.mode) else _converted(image, profile)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image


@functools.lru_cache(maxsize=16)
def _is_srgb(profile: bytes, mode: str) -> bool:
    """Whether a profile changes no colour, which its name does not tell: GIMP has a linear sRGB, without gamma."""
    if mode not in ("L", "RGB"):
        return False
    levels = np.arange(0, 256, 17, dtype=np.uint8)
    colours = Image.fromarray(np.stack(np.meshgrid(levels, levels, levels), -1).reshape(64, 64, 3)).convert(mode)
    before, after = (np.asarray(one, dtype=int) for one in (colours.convert("RGB"), _converted(colours, profile)))
    return bool(np.abs(after - before).max() <= _ROUNDED)


def _converted(image: Image.Image, profile: bytes) -> Image.Image:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return ImageCms.profileToProfile(image, source, _SRGB, outputMode="RGB") or image


_SRGB = ImageCms.createProfile("sRGB")


@functools.cache
def _reads_heic() -> bool:
    """Has Pillow know HEIC, where the package for it is there."""
    try:
        from pi_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True
