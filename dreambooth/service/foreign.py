"""Settings of other trainers on the disk: what a file or folder is, and what it says as ours."""

from __future__ import annotations

import ast
import json
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dreambooth.core.captions import PICTURES
from dreambooth.core.errors import UserError
from dreambooth.core.files import paths
from dreambooth.core.layout import PROJECT
from dreambooth.core.migrate import kohya, predecessor
from dreambooth.core.migrate.report import Look, Migration, Seen
from dreambooth.service import environment

_KINDS = (
    "a concepts_list.json, the predecessor's db_config.json, kohya's dataset .toml, or a folder that holds folders "
    "such as '10_sks dog'"
)


def read(path: Path, python: Callable[[], Path]) -> tuple[str, Migration]:
    """What the file or folder is, and its settings as ours. `python` finds the engine's, which
    reads .toml files alone.

    Raises UserError for what cannot be read, or is of no kind that is known.
    """
    look = _looker(path if path.is_dir() else path.parent)
    if path.is_dir():
        kind, migration = "kohya's folders", _folders(path, look)
    elif not path.is_file():
        raise UserError(f"{path}: there is no such file or folder.")
    elif path.suffix.lower() == ".toml":
        kind, migration = "kohya's dataset file", _toml(path, python(), look)
    else:
        kind, migration = _json(path, look)
    _make_absolute(migration, path if path.is_dir() else path.parent)
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
    except ValueError:
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
        if not folder.strip() or not place.is_dir():
            return Seen()
        pictures = [one for one in place.rglob("*") if one.suffix.lower() in PICTURES and not one.name.startswith(".")]
        suffixes = Counter(
            file.suffix for one in pictures for file in one.parent.glob(f"{_escaped(one.stem)}.*") if file != one
        )
        return Seen(len(pictures), suffixes)

    return look


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _make_absolute(migration: Migration, base: Path) -> None:
    """A relative folder is meant from where the file lies."""
    for key, value in migration.settings.items():
        if key.endswith("_dir") and str(value).strip():
            migration.settings[key] = paths.within(base, value)
