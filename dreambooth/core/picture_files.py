"""The picture files of concepts: which there are, and what is said of concepts that have none."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from dreambooth.core.captions import PICTURES
from dreambooth.core.files import paths
from dreambooth.core.settings.dataset import Concept

_MASK_ENDINGS = ("-masklabel", "-mask")  # NAME-mask.png beside NAME.jpg; OneTrainer's, and what others write
_MASK_FOLDER = "masks"  # masks/NAME.png in the folder of NAME.jpg


def find(folder: Path) -> list[Path]:
    """All picture files in a folder and below it, in the order of their names; hidden ones and masks are left out."""
    return [folder / name for name in names(folder)]


def names(folder: Path, most_looked_at: int = sys.maxsize) -> list[str]:
    """The same as relative paths, parted by slashes. Of a folder that holds more of any kind than is to be looked at,
    those that were come to before."""
    return _without_masks(sorted(_walk(folder, most_looked_at), key=_order))


def name_order(folder: Path, picture: Path) -> str:
    """The key by which `find` sorts the pictures of a folder."""
    return _order(picture.relative_to(folder).as_posix())


def _order(name: str) -> str:
    """As paths are ordered: by each of their parts in turn."""
    return os.path.normcase(name).replace(os.sep, "\0")


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is one that systems hide."""
    return name.startswith((".", "__MACOSX"))


def masks_of(picture: Path) -> list[Path]:
    """Where a picture's mask may be, the first of which is its own."""
    beside = [picture.with_name(f"{picture.stem}{ending}.png") for ending in reversed(_MASK_ENDINGS)]
    return [*beside, picture.parent / _MASK_FOLDER / f"{picture.stem}.png"]


def called(file: Path) -> str:
    """The name, without its ending, that a picture has in common with its caption and its mask beside it."""
    return _called(file.stem) if file.suffix.lower() == ".png" else file.stem


def _called(stem: str) -> str:
    """The same of a .png file, which may be a mask."""
    return next((stem.removesuffix(ending) for ending in _MASK_ENDINGS if stem.endswith(ending)), stem)


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
    elif not paths.is_folder(folder):
        found.append(f"{key}.instance_data_dir: {paths.no_folder(folder)}")
    elif next(_walk(folder), None) is None:
        found.append(f"{key}.instance_data_dir: there are no pictures in {folder} ({', '.join(PICTURES)}).")
    elif concept.held_out and concept.held_out >= (count := len(of_concept(concept))):
        mend = f"hold out {count - 1} or fewer" if count > 1 else "set it to 0"
        found.append(f"{key}.held_out: of {count} pictures in {folder} none would be left to learn from; {mend}.")
    of_class = Path(concept.class_data_dir).expanduser()
    is_wanted = concept.class_mode == "folder" or (concept.class_mode == "fill" and concept.num_class_images_per)
    if is_wanted and concept.class_data_dir.strip() and paths.is_file(of_class):
        found.append(f"{key}.class_data_dir: {paths.no_folder(of_class)}")
    return found


def of_concept(concept: Concept) -> list[Path]:
    """A concept's own pictures; none where there is no such folder."""
    folder = Path(concept.instance_data_dir).expanduser()
    return find(folder) if concept.instance_data_dir.strip() and paths.is_folder(folder) else []


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


def _walk(folder: Path, most_looked_at: int = sys.maxsize) -> Iterator[str]:
    """Links to folders are not followed; neither a folder nor a pipe is a picture, whatever its name is."""
    waiting = [""]
    while waiting:
        before = waiting.pop(0)
        with contextlib.suppress(OSError), os.scandir(folder / before) as entries:  # as far as it may be looked into
            for entry in entries:
                if not most_looked_at:
                    return
                most_looked_at -= 1
                if is_hidden(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{before}{entry.name}/")
                elif entry.name.lower().endswith(PICTURES) and _leads_to_a_file(entry):
                    yield before + entry.name


def _leads_to_a_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link that leads in a circle, or to where nobody may look
        return False


def _without_masks(found: list[str]) -> list[str]:
    """The pictures that are not the mask of another one of them."""
    there = {name.rpartition(".")[0] for name in found}
    return [name for name in found if not (of := _masked(name)) or of not in there]


def _masked(name: str) -> str | None:
    """The picture, without its ending, whose mask a file is by its name."""
    stem, _, ending = name.rpartition(".")
    place, slash, own = stem.rpartition("/")
    if ending.lower() != "png":
        return None
    if place == _MASK_FOLDER or place.endswith(f"/{_MASK_FOLDER}"):
        return place.removesuffix(_MASK_FOLDER) + own
    return place + slash + _called(own) if _called(own) != own else None
