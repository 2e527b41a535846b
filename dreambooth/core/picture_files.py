"""The picture files of concepts: which there are, and what is said of concepts that have none."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from dreambooth.core.captions import PICTURES
from dreambooth.core.files import paths
from dreambooth.core.settings.dataset import Concept

_MASK_ENDINGS = ("-masklabel", "-mask")  # NAME-mask.png beside NAME.jpg; OneTrainer's, and what others write
_MASK_FOLDER = "masks"  # masks/NAME.png in the folder of NAME.jpg


def find(folder: Path) -> list[Path]:
    """All picture files in a folder and below it, in the order of their names; hidden ones and masks are left out."""
    return _without_masks(sorted(_walk(folder)))


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is one that systems hide."""
    return name.startswith((".", "__MACOSX"))


def masks_of(picture: Path) -> list[Path]:
    """Where a picture's mask may be, the first of which is its own."""
    beside = [picture.with_name(f"{picture.stem}{ending}.png") for ending in reversed(_MASK_ENDINGS)]
    return [*beside, picture.parent / _MASK_FOLDER / f"{picture.stem}.png"]


def called(file: Path) -> str:
    """The name, without its ending, that a picture has in common with its caption and its mask beside it."""
    for ending in _MASK_ENDINGS:
        if file.suffix.lower() == ".png" and file.stem.endswith(ending):
            return file.stem.removesuffix(ending)
    return file.stem


def problems(concepts: Sequence[Concept]) -> list[str]:
    """Every sentence about concepts that lack words, a folder, or a picture in it. Looks into no picture."""
    return [sentence for number, concept in enumerate(concepts) for sentence in problems_of(concept, number)]


def problems_of(concept: Concept, number: int) -> list[str]:
    """The same of one concept."""
    key, found = f"concepts.{number}", []
    if not concept.instance_prompt.strip():
        found.append(f"{key}.instance_prompt: it is empty; say what the pictures show, such as: a photo of sks dog.")
    folder = Path(concept.instance_data_dir).expanduser()
    if not concept.instance_data_dir.strip():
        found.append(f"{key}.instance_data_dir: it is empty; name the folder with your pictures.")
    elif not folder.is_dir():
        found.append(f"{key}.instance_data_dir: {paths.no_folder(folder)}")
    elif next(_walk(folder), None) is None:
        found.append(f"{key}.instance_data_dir: there are no pictures in {folder} ({', '.join(PICTURES)}).")
    elif concept.held_out and concept.held_out >= (count := len(of_concept(concept))):
        mend = f"hold out {count - 1} or fewer" if count > 1 else "set it to 0"
        found.append(f"{key}.held_out: of {count} pictures in {folder} none would be left to learn from; {mend}.")
    of_class = Path(concept.class_data_dir).expanduser()
    is_wanted = concept.class_mode == "folder" or (concept.class_mode == "fill" and concept.num_class_images_per)
    if is_wanted and concept.class_data_dir.strip() and of_class.exists() and not of_class.is_dir():
        found.append(f"{key}.class_data_dir: {paths.no_folder(of_class)}")
    return found


def of_concept(concept: Concept) -> list[Path]:
    """A concept's own pictures; none where there is no such folder."""
    folder = Path(concept.instance_data_dir).expanduser()
    return find(folder) if concept.instance_data_dir.strip() and folder.is_dir() else []


def held_out(concept: Concept, found: Sequence[Path], seed: int) -> set[Path]:
    """Those of a concept's pictures that are not learned: the same ones wherever the folder lies."""
    marks = {path: hashlib.sha256(f"{seed} {path.name}".encode(errors="surrogateescape")).digest() for path in found}
    return set(sorted(marks, key=lambda path: (marks[path], path))[: concept.held_out])


def seen_each_epoch(concepts: Sequence[Concept]) -> int:
    """How many pictures an epoch sees: each that is learned as often as its concept's repeats."""
    return sum(learned(concept, len(of_concept(concept))) * concept.repeats for concept in concepts)


def learned(concept: Concept, count: int) -> int:
    """How many of so many pictures of a concept are learned."""
    return max(0, count - concept.held_out)


def _walk(folder: Path) -> Iterator[Path]:
    """Links to folders are not followed."""
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not is_hidden(name)]
        for name in files:
            path = Path(place, name)
            if path.suffix.lower() in PICTURES and not is_hidden(name) and path.is_file():
                yield path


def _without_masks(pictures: list[Path]) -> list[Path]:
    """The pictures that are not the mask of another one of them."""
    there = {path.with_suffix("") for path in pictures}
    return [path for path in pictures if not (of := _masked(path)) or of not in there]


def _masked(path: Path) -> Path | None:
    """The picture, without its ending, whose mask a file is by its name."""
    if path.suffix.lower() == ".png" and path.parent.name == _MASK_FOLDER:
        return path.parent.parent / path.stem
    return path.with_name(called(path)) if called(path) != path.stem else None
