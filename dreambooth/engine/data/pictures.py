"""Finding pictures and their captions, and making them ready: upright, RGB, cropped to the size."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from dreambooth.core.errors import UserError
from dreambooth.core.settings import Concept

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
FILEWORDS = "[filewords]"


@dataclass(frozen=True)
class Picture:
    """One picture of the training set, with the words it is trained on."""

    path: Path
    prompt: str
    concept: int


def find(folder: Path) -> list[Path]:
    """All picture files in a folder and below it, in the order of their names; hidden ones are left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
    )


def instance_pictures(concepts: list[Concept]) -> list[Picture]:
    """The pictures of all concepts. Raises UserError naming every folder, prompt and file that will not do."""
    problems: list[str] = []
    pictures: list[Picture] = []
    for number, concept in enumerate(concepts):
        key = f"concepts.{number}"
        if not concept.instance_prompt.strip():
            problems.append(
                f"{key}.instance_prompt: it is empty; say what the pictures show, such as: a photo of sks dog."
            )
        folder = Path(concept.instance_data_dir).expanduser()
        if not concept.instance_data_dir.strip():
            problems.append(f"{key}.instance_data_dir: it is empty; name the folder with your pictures.")
        elif not folder.is_dir():
            problems.append(f"{key}.instance_data_dir: there is no folder {folder}.")
        elif not (found := find(folder)):
            problems.append(f"{key}.instance_data_dir: there are no pictures in {folder} ({', '.join(SUFFIXES)}).")
        else:
            pictures += [Picture(path, words(concept.instance_prompt, path), number) for path in found]
    problems += [problem for picture in pictures if (problem := damage(picture.path))]
    if problems:
        raise UserError(problems)
    return pictures


def words(prompt: str, path: Path) -> str:
    """The prompt of one picture: [filewords] becomes the text beside it, or its file name where there is none."""
    if FILEWORDS not in prompt:
        return prompt.strip()
    beside = path.with_suffix(".txt")
    try:
        text = beside.read_text(encoding="utf-8-sig").strip() if beside.exists() else path.stem
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{beside}: the caption cannot be read as UTF-8 text.") from None
    return prompt.replace(FILEWORDS, text).strip()


def damage(path: Path) -> str:
    """What is wrong with a picture file, in one sentence; empty if it can be used."""
    try:
        _open(path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else "damaged"
        return f"{path}: this picture cannot be read ({reason}); replace or remove it."
    return ""


def load(path: Path, size: int) -> Image.Image:
    """The picture upright, in RGB, its centre cropped to a square of `size` pixels."""
    return ImageOps.fit(_open(path), (size, size), Image.Resampling.LANCZOS)


def framing(path: Path, size: int) -> list[int]:
    """How `load` frames a picture: height and width of the file, top and left corner of the crop once the picture is
    resized, height and width of the crop. All in pixels."""
    with Image.open(path) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        height, width = (image.width, image.height) if turned else (image.height, image.width)
    scale = size / min(width, height)
    return [height, width, round((height * scale - size) / 2), round((width * scale - size) / 2), size, size]


def _open(path: Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata is not the person's problem
        with Image.open(path) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # 16 bits a pixel
        upright = Image.fromarray((np.asarray(upright, dtype=np.float32) / 257).clip(0, 255).astype(np.uint8))
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        upright = upright.convert("RGBA")
        ground = Image.new("RGBA", upright.size, (255, 255, 255, 255))
        upright = Image.alpha_composite(ground, upright)
    return upright.convert("RGB")
