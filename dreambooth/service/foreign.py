"""Settings of other trainers on the disk: what a file or folder is, and what it says as ours."""

from __future__ import annotations

import ast
import json
import os
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dreambooth.core.errors import UserError
from dreambooth.core.files import paths
from dreambooth.core.layout import PROJECT
from dreambooth.core.migrate import kohya, predecessor
from dreambooth.core.migrate.report import Line, Look, Migration, Seen
from dreambooth.service import environment, pictures

_MOST_BYTES = 20_000_000
_KINDS = (
    "a concepts_list.json, the predecessor's db_config.json, kohya's dataset .toml, or a folder that holds folders "
    "such as '10_sks dog'"
)


def read(path: Path, python: Callable[[], Path]) -> tuple[str, Migration]:
    """What the file or folder is, and its settings as ours. `python` finds the engine's, which
    reads .toml files alone.

    Raises UserError for what cannot be read, or is of no kind that is known.
    """
    base = path if path.is_dir() else path.parent
    look = _looker(base)
    if path.is_dir():
        kind, migration = "kohya's folders", _folders(path, look)
    elif not path.is_file():
        raise UserError(f"{path}: there is no such file or folder.")
    elif path.suffix.lower() == ".toml":
        kind, migration = "kohya's dataset file", _toml(path, python(), look)
    else:
        kind, migration = _json(path, look)
    _leave_out_what_is_not_touched(migration, base)
    _make_absolute(migration, base)
    return kind, migration


def _json(path: Path, look: Look) -> tuple[str, Migration]:
    content = _parsed(path)
    if isinstance(content, dict) and ("concepts_list" in content or "num_train_epochs" in content):
        return "the predecessor's db_config.json", predecessor.config(content, look)
    if isinstance(content, dict) and "instance_data_dir" in content:
        content = [content]
    if isinstance(content, list) and any(isinstance(one, dict) and "instance_data_dir" in one for one in content):
        return "a concepts list", predecessor.concepts(content, look)
    raise UserError(f"{path}: this is none of the files that can be imported ({_KINDS}).")


def _parsed(path: Path) -> Any:
    """JSON, or the Python list with comments as which guides print a concepts list."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f"{path}: this is none of the files that can be imported ({_KINDS}); it is too large.")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path}: the file cannot be read as text.") from None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        first = error
    try:
        last = ast.parse(text).body[-1]
        return ast.literal_eval(last.value) if isinstance(last, (ast.Assign, ast.Expr)) else None
    except (ValueError, SyntaxError, IndexError, MemoryError, RecursionError):
        raise UserError(f"{path}: the file is not JSON ({first}).") from None


def _toml(path: Path, python: Path, look: Look) -> Migration:
    said = subprocess.run(
        [str(python), "-m", "dreambooth.engine", "toml", str(path)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=PROJECT,
        env=environment.engine_variables(),
    )
    try:
        content = json.loads(said.stdout)
    except (ValueError, RecursionError):
        reason = (said.stderr.strip().splitlines() or ["it said nothing"])[-1]
        mend = "run setup again (on the page: Set Up)"
        raise UserError(f"{path}: the engine could not read the file ({reason}); {mend}.") from None
    if said.returncode:
        raise UserError(f"{path}: the file is not TOML ({content['problem']}).")
    if not content.get("datasets"):
        raise UserError(f"{path}: the file has no [[datasets]]; only kohya's dataset files can be imported.")
    return kohya.dataset(content, look)


def _folders(path: Path, look: Look) -> Migration:
    train, of_class = (path / "img" if (path / "img").is_dir() else path), path / "reg"
    found = _named(train) or ([(path.name, str(path))] if kohya.FOLDER.fullmatch(path.name) else [])
    if not found:
        raise UserError(f"{path}: it holds no folders that are named after repeats and class, such as '10_sks dog'.")
    return kohya.folders(found, _named(of_class), look)


def _named(folder: Path) -> list[tuple[str, str]]:
    if not folder.is_dir():
        return []
    return [
        (one.name, str(one)) for one in sorted(folder.iterdir()) if one.is_dir() and kohya.FOLDER.fullmatch(one.name)
    ]


def _looker(base: Path) -> Look:
    def look(folder: str) -> Seen:
        place = Path(paths.within(base, folder))
        if not folder.strip() or _why_not(folder, base) or not place.is_dir():
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


def _why_not(named: str, base: Path) -> str:
    """Why a path that somebody's file names is not to be touched; empty where it may be. Windows logs in, by its user's
    name, to whatever computer a path leads to."""
    text = paths.meant(named)
    if paths.is_of_another_computer(text) and (os.name != "nt" or Path(text).drive.lower() != base.drive.lower()):
        return "it lies on another computer; name it yourself if you want it"
    place = Path(paths.within(base, named))
    return "it is a whole disk; name the folder with the pictures" if place == Path(place.anchor) else ""


def _leave_out_what_is_not_touched(migration: Migration, base: Path) -> None:
    for key, value in list(migration.settings.items()):
        is_path = key.endswith(("_dir", "_file")) and isinstance(value, str) and value.strip()
        if is_path and (why := _why_not(value, base)):
            del migration.settings[key]
            migration.lines = [
                Line("left out", line.theirs, "", line.value, why) if line.ours == key else line
                for line in migration.lines
            ]


def _make_absolute(migration: Migration, base: Path) -> None:
    """A relative folder is meant from where the file lies."""
    for key, value in migration.settings.items():
        if key.endswith("_dir") and str(value).strip():
            migration.settings[key] = paths.within(base, value)
