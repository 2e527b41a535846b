"""Pictures that were dropped on the page: they lie in the model's own folder, and can be taken away from there. Another
folder that a person has named is theirs, and nothing is moved in it."""

from __future__ import annotations

from pathlib import Path

from dreambooth.core import captions
from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic
from dreambooth.core.picture_files import MASK_ENDING, MASK_FOLDER
from dreambooth.core.project import Folders, Project
from dreambooth.service import pictures


def are_in(opened: Project, folder: Path) -> bool:
    """Whether the pictures of a folder are copies of dropped ones."""
    return folder.resolve().is_relative_to(opened.folder.resolve() / "pictures")


def take_away(folders: Folders, opened: Project, folder: Path, name: str) -> Path:
    """Moves a picture to the trash, with its caption and its mask. Returns where it is then.

    Raises UserError for a picture that is not there or not a dropped one, and where it cannot be moved.
    """
    picture = pictures.confined(folder, name)
    if not are_in(opened, folder):
        raise UserError(f"{picture}: its folder is not the model's own; remove it there yourself.")
    beside = [captions.beside(picture), picture.with_name(f"{picture.stem}{MASK_ENDING}.png")]
    beside.append(picture.parent / MASK_FOLDER / f"{picture.stem}.png")
    trash, number = folders.trash / f"{opened.name} {picture.name}", 2
    while trash.exists():
        trash, number = folders.trash / f"{opened.name} {picture.name} {number}", number + 1
    try:
        trash.mkdir(parents=True)
        for file in (picture, *(file for file in beside if file and file.is_file())):
            atomic.move(file, trash / file.name)
    except OSError as error:
        raise UserError(f"{picture}: it cannot be moved to the trash ({error.strerror}).") from None
    return trash / picture.name
