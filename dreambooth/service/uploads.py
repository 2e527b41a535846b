"""Pictures that were dropped on the page: they lie in the model's own folder, and can be taken away from there. Another
folder that a person has named is theirs, and nothing is put there or moved in it."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dreambooth.core import captions, focal_point, picture_files
from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic, file_names, paths
from dreambooth.core.project import Folders, Project
from dreambooth.service import pictures


def are_in(opened: Project, folder: Path) -> bool:
    """Whether the pictures of a folder are copies of dropped ones."""
    return folder.resolve().is_relative_to(opened.folder.resolve() / "pictures")


@dataclass(frozen=True)
class Taken:
    folder: str
    strange: list[str]  # neither pictures nor captions
    kept: list[str]  # captions, crops and masks that a picture has already, and other ones


def take_in(opened: Project, former: str, files: Sequence[Path]) -> Taken:
    """Copies dropped pictures with their captions, crops and masks beside the model, never over another file: into
    `former`, which the concept has, where that is a folder of dropped ones, else into a new one. Raises UserError where
    none is a picture or caption."""
    accepted = (*captions.PICTURES, *captions.BESIDE, focal_point.SUFFIX)
    strange = [file.name for file in files if file.suffix.lower() not in accepted]
    if len(strange) == len(files):
        raise UserError(f"{', '.join(strange)}: these are no pictures or captions ({', '.join(accepted)}).")
    folder, kept = _folder(opened, former), list[str]()
    folder.mkdir(parents=True, exist_ok=True)
    for called, belonging in _together(file for file in files if file.name not in strange):
        stem, number = called, 2
        while not _is_free(folder, stem, called, belonging):
            stem, number = f"{called}-{number}", number + 1
        for file in belonging:
            target = folder / (stem + file.name[len(called) :])
            if not target.exists():
                with atomic.staged(target) as staged:
                    shutil.copyfile(file, staged)
            elif not _are_same(target, file):
                kept.append(target.name)
    return Taken(str(folder), strange, kept)


def _folder(opened: Project, former: str) -> Path:
    if former.strip() and are_in(opened, Path(former)):
        return Path(former)
    number = 1
    while (folder := opened.folder / "pictures" / f"{number}").exists():
        number += 1
    return folder


def _together(files: Iterable[Path]) -> list[tuple[str, list[Path]]]:
    """What belongs to each picture, by its name without an ending. Of several files of one name, from different
    folders, each belongs elsewhere."""
    found: dict[tuple[str, int], list[Path]] = {}
    seen: Counter[str] = Counter()
    for file in files:
        found.setdefault((picture_files.called(file), seen[file.name]), []).append(file)
        seen[file.name] += 1
    return [(called, belonging) for (called, _), belonging in found.items()]


def _is_free(folder: Path, stem: str, called: str, belonging: Sequence[Path]) -> bool:
    """Whether these may have a name there: no picture has it, or it is theirs already; and no other words wait there.
    Captions alone go to whatever picture has their name."""
    targets = {file: folder / (stem + file.name[len(called) :]) for file in belonging}
    own = [file for file in belonging if _is_picture(file)]
    if not own or all(_are_same(targets[file], file) for file in own):
        return True
    if any(_is_picture(file) and picture_files.called(file).casefold() == stem.casefold() for file in folder.iterdir()):
        return False
    return all(_are_same(target, file) or not target.exists() for file, target in targets.items())


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in captions.PICTURES


def _are_same(one: Path, other: Path) -> bool:
    return one.is_file() and one.read_bytes() == other.read_bytes()


def take_away(folders: Folders, opened: Project, folder: Path, name: str) -> Path:
    """Moves a picture to the trash, with its captions, its crop and its masks. Returns where it is then.

    Raises UserError for a picture that is not there or not a dropped one, and where it cannot be moved.
    """
    picture = pictures.confined(folder, name)
    if not are_in(opened, folder):
        raise UserError(f"{picture}: its folder is not the model's own; remove it there yourself.")
    try:
        trash = _new_trash(folders, f"{opened.name} {picture.name}")
        for file in (picture, *_only_of(picture)):
            target = trash / file.relative_to(picture.parent)  # a mask in masks/ has the picture's own name
            target.parent.mkdir(exist_ok=True)
            atomic.move(file, target)
    except OSError as error:
        raise UserError(f"{picture}: it cannot be moved to the trash ({error.strerror}).") from None
    return trash / picture.name


def _only_of(picture: Path) -> list[Path]:
    """The files that belong to a picture and to none beside it: of two that differ in their ending, or in the case of
    letters, a caption may be both's, as systems disagree on the latter."""
    stem = picture.stem.casefold()
    if any(_is_picture(file) and file.stem.casefold() == stem and file != picture for file in picture.parent.iterdir()):
        return []
    own = [*captions.files_of(picture), focal_point.beside(picture), *picture_files.masks_of(picture)]
    return list(filter(paths.is_file, own))


def _new_trash(folders: Folders, wanted: str) -> Path:
    """A new folder in the trash, called as it is wanted as far as a name may be that long. Raises OSError."""
    name, number = file_names.cut(wanted), 2
    while (trash := folders.trash / name).exists():
        name, number = file_names.cut(wanted, f" {number}"), number + 1
    trash.mkdir(parents=True)
    return trash
