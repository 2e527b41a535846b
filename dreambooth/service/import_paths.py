"""What lies where another trainer's file says: nothing on other computers and no whole disk is looked at."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dreambooth.core.errors import UserError
from dreambooth.core.files import confinement, paths
from dreambooth.core.migrate import kohya_dataset
from dreambooth.core.migrate.disk import NOT_THERE, Disk
from dreambooth.core.migrate.report import Look, Seen
from dreambooth.service import pictures

_MOST_TEXT = 1_000_000  # bytes of a file that another one names


def seen_from(base: Path) -> Disk:
    """The disk as seen from a folder; other files that one names are looked for in the folder around it, too."""

    def found(name: str, *places: Path) -> Path | None:
        some = [] if why_not(name, base) else [paths.within(place, name) for place in places or (base,)]
        return next((Path(one) for one in some if not paths.problem(one) and _is_there(Path(one))), None)

    def problem(name: str) -> str:
        return why_not(name, base) or ("" if found(name) else NOT_THERE)

    def repeated(folder: str) -> list[tuple[str, str]]:
        place = found(folder)
        with contextlib.suppress(OSError):
            return named(place) if place else []
        return []

    def text(name: str) -> str | None:
        place = found(name, base, base.parent)
        return _small(place) if place and place.suffix.lower() == ".txt" else None

    def parsed(name: str) -> Any:
        place = found(name, base, base.parent)
        try:
            return json.loads(_small(place) or "") if place and place.suffix.lower() == ".json" else None
        except (ValueError, RecursionError):
            return None

    return Disk(looker(base), problem, repeated, text, parsed)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _small(file: Path) -> str | None:
    """What a small text file holds; None for what is none."""
    try:
        is_small = file.is_file() and file.stat().st_size <= _MOST_TEXT
        return file.read_text(encoding="utf-8-sig") if is_small else None
    except (OSError, UnicodeDecodeError):
        return None


def named(folder: Path) -> list[tuple[str, str]]:
    """Folders in one that are named as kohya's are, such as `10_sks dog`: name and path."""
    if not paths.is_folder(folder):
        return []
    return [
        (one.name, str(one))
        for one in sorted(folder.iterdir())
        if one.is_dir() and kohya_dataset.FOLDER.fullmatch(one.name)
    ]


def looker(base: Path) -> Look:
    def look(folder: str) -> Seen:
        place = Path(paths.within(base, folder))
        if not folder.strip() or why_not(folder, base) or not paths.is_folder(place):
            return Seen()
        found = [place / name for name in pictures.names(place)]
        of_folders: dict[Path, list[Path]] = {}
        for one in found:
            of_folders.setdefault(one.parent, []).append(one)
        return Seen(len(found), Counter(suffix for each in of_folders.items() for suffix in _beside(*each)))

    return look


def _beside(folder: Path, some: list[Path]) -> Iterator[str]:
    """The endings of what lies beside pictures of a folder under their names."""
    endings: dict[str, list[str]] = {}
    for file in folder.iterdir():
        endings.setdefault(file.stem, []).append(file.suffix)
    for one in some:
        yield from (ending for ending in endings[one.stem] if ending != one.suffix)


def why_not(named: str, base: Path) -> str:
    """Why a path that somebody's file names is not to be touched; empty where it may be. Windows logs in, by its user's
    name, to whatever computer a path leads to."""
    text = paths.meant(named)
    if paths.is_of_another_computer(text) and (os.name != "nt" or Path(text).drive.lower() != base.drive.lower()):
        return "it lies on another computer; name it yourself if you want it"
    place = Path(paths.within(base, named))
    if place == Path(place.anchor):
        return "it is a whole disk; name the folder with the pictures"
    try:
        if not paths.problem(text):
            confinement.check(place, "it", named)
    except UserError:
        return "it lies outside of the WebUI's folders, and nothing there may be named here"
    return ""
