"""Paths as people write them, into a field, a flag or a settings file."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dreambooth.core.errors import UserError
from dreambooth.core.files import file_names

_LONGEST_PATH = 4000  # bytes; what every file system here takes


def meant(text: str) -> str:
    """The path in a text, without what file managers put around one that they copy: quotes, spaces, file://."""
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1].strip()
    if text.lower().startswith("file:///"):
        path = unquote(urlsplit(text).path)
        text = path[1:] if path[2:3] == ":" else path  # file:///C:/pictures
    return text


def problem(text: str) -> str:
    """Why a text can be no path; empty if it can."""
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        return "it holds what is no character; write it anew, or rename the folder or file."
    if b"\x00" in encoded:
        return "it holds a character without a meaning (NUL); write it anew."
    if len(encoded) > _LONGEST_PATH or any(len(part.encode()) > file_names.LONGEST for part in Path(text).parts):
        return f"it is too long for a folder or file ({len(text):,} characters); write it anew."
    try:
        Path(text).expanduser()
    except RuntimeError:
        return f"there is no home of {Path(text).parts[0]!r}; write the whole path."
    return ""


def named(text: str, what: str) -> Path:
    """The absolute path that is meant. Raises UserError, naming `what`, for a text that can be no path, or is empty."""
    text = meant(text)
    if not text:
        raise UserError(f"{what}: it is empty; name a file or folder.")
    if reason := problem(text):
        raise UserError(f"{what}: {reason}")
    try:
        return Path(text).expanduser().resolve()
    except RuntimeError:  # as Python says it up to 3.12
        raise UserError(f"{what}: {text} is a link that leads back to itself; name the file or folder.") from None


def make_folder(path: Path) -> None:
    """Makes a folder with those above it, as far as they are not there. Raises UserError if it cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: the folder cannot be made ({error.strerror}); name another place.") from None


def within(folder: Path, text: str) -> str:
    """The path that is meant, in a folder if it is relative; a text that can be none as it is, for who checks it."""
    text = meant(text)
    return text if problem(text) else str(folder / Path(text).expanduser())


def is_of_another_computer(text: str) -> bool:
    """Whether a path is one by which Windows asks another computer: \\\\NAME\\FOLDER, there also with slashes."""
    return (text.replace("/", "\\") if os.name == "nt" else text).startswith("\\\\")


def unwritable(folder: Path) -> str:
    """Why no file can be put into a folder, which may have to be made; empty where nothing speaks against it."""
    for place in (folder, *folder.parents):
        if not os.path.lexists(place):
            continue
        if not is_folder(place):
            return f"{place} is a file"
        return "" if os.access(place, os.W_OK | os.X_OK) else f"{place} is read-only"
    return f"there is no {folder.anchor}"


def is_file(path: Path) -> bool:
    """Whether there is such a file. Path.is_file raises OSError where the name is too long to be one, as one may be
    that is made from a picture's, or where its folder may not be looked into."""
    try:
        return path.is_file()
    except OSError:
        return False


def is_folder(path: Path) -> bool:
    """Whether there is such a folder. Path.is_dir raises OSError as Path.is_file does."""
    try:
        return path.is_dir()
    except OSError:
        return False


def no_folder(path: Path) -> str:
    """Why a path is no folder that can be read."""
    if is_file(path):
        return f"{path} is a file; name the folder that it is in."
    return f"there is no folder {path}."
