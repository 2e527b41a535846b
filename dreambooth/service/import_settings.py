"""Settings of other trainers on the disk: what a file or folder is, what it says as ours, and taking that over."""

from __future__ import annotations

import ast
import json
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dreambooth.core.errors import UserError
from dreambooth.core.files import confinement, paths
from dreambooth.core.install_paths import PROJECT
from dreambooth.core.migrate import command, diffusers_scripts, kohya_dataset, onetrainer, predecessor, sd_scripts
from dreambooth.core.migrate.disk import Disk
from dreambooth.core.migrate.report import Line, Look, Migration
from dreambooth.core.project import Project
from dreambooth.service import environment, import_paths, models, settings_lock, settings_undo

_MOST_BYTES = 20_000_000
_MOST_LITERAL = 1_000_000  # characters of a Python list, for each of which Python takes some 400 bytes
_KINDS = (
    "a concepts_list.json, sd_dreambooth_extension's db_config.json, kohya's dataset or config .toml, a file with a "
    "command that starts one of kohya's or diffusers' scripts, a .json of kohya_ss or of OneTrainer, or a folder that "
    "holds folders such as '10_sks dog'"
)


def take_over(
    opened: Project,
    path: Path,
    python: Callable[[], Path],
    over: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> tuple[str, dict[str, Any], list[dict[str, Any]]]:
    """Another trainer's settings over the model's own: what the file is, the settings, and the fate of every key.

    Its concepts take the place of the model's. `python` finds the engine's, where it is needed; `over` puts further
    changes over all. Raises UserError for what cannot be read or does not go together, and writes nothing then.
    """
    kind, migration = read(confinement.named(str(path), "path"), python)  # before the lock: an engine may have to start
    with settings_lock.changing(opened):
        own = opened.settings()
        if any(key.startswith("concepts.") for key in migration.settings):
            own = models.without_concepts(own)
        written = settings_undo.change(opened, over({**own, **migration.settings}))
    return kind, written, [asdict(line) for line in migration.lines]


def read(path: Path, python: Callable[[], Path]) -> tuple[str, Migration]:
    """What the file or folder is, and its settings as ours. `python` finds the engine's, which
    reads .toml files alone.

    Raises UserError for what cannot be read, or is of no kind that is known.
    """
    base = path if paths.is_folder(path) else path.parent
    disk = import_paths.seen_from(base)
    if paths.is_folder(path):
        kind, migration = "kohya's folders", _folders(path, disk.look)
    elif not paths.is_file(path):
        raise UserError(f"{path}: there is no such file or folder.")
    elif path.suffix.lower() == ".toml":
        kind, migration = _toml(path, python(), disk)
    else:
        text = _text(path)
        kind, migration = _command(path, text, disk) or _json(path, text, disk)
    _leave_out_what_is_not_touched(migration, base)
    _make_absolute(migration, base)
    return kind, migration


def _command(path: Path, text: str, disk: Disk) -> tuple[str, Migration] | None:
    """None where the text holds no command that starts a trainer's script."""
    try:
        found = command.read(text, (*sd_scripts.SCRIPTS, *diffusers_scripts.SCRIPTS))
    except ValueError as error:
        raise UserError(f"{path}: the command in it cannot be read ({error}).") from None
    if found is None:
        return None
    if found.script in sd_scripts.SCRIPTS:
        return "a command of kohya's scripts", sd_scripts.command_line(found, disk)
    return "a command of diffusers' scripts", diffusers_scripts.command_line(found, disk)


def _json(path: Path, text: str, disk: Disk) -> tuple[str, Migration]:
    content = _parsed(path, text)
    if isinstance(content, dict) and "instance_data_dir" in content:
        content = [content]
    if isinstance(content, dict):
        if content.keys() & {"concepts_list", "num_train_epochs"}:
            return "sd_dreambooth_extension's db_config.json", predecessor.config(content, disk.look)
        if content.keys() & onetrainer.KNOWN:
            return "OneTrainer's settings", onetrainer.config(content, disk)
        if content.keys() & sd_scripts.OF_PAGE:
            return "a file of kohya_ss", sd_scripts.page_file(content, disk)
    if isinstance(content, list):
        keys = {key for one in content if isinstance(one, dict) for key in one}
        if "instance_data_dir" in keys:
            return "a concepts list", predecessor.concepts(content, disk.look)
        if keys >= {"path", "text"}:
            return "OneTrainer's concepts", onetrainer.concepts(content, disk)
    raise UserError(f"{path}: this is none of the files that can be imported ({_KINDS}).")


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f"{path}: this is none of the files that can be imported ({_KINDS}); it is too large.")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path}: the file cannot be read as text.") from None


def _parsed(path: Path, text: str) -> Any:
    """JSON, or the Python list with comments as which guides print a concepts list."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        first = error
    if len(text) > _MOST_LITERAL:
        raise UserError(f"{path}: the file is not JSON ({first}), and too large to be read as anything else.")
    try:
        last = ast.parse(text).body[-1]
        return ast.literal_eval(last.value) if isinstance(last, (ast.Assign, ast.Expr)) else None
    except (ValueError, SyntaxError, IndexError, MemoryError, RecursionError):
        raise UserError(f"{path}: the file is not JSON ({first}); what can be imported is {_KINDS}.") from None


def _toml(path: Path, python: Path, disk: Disk) -> tuple[str, Migration]:
    completed = subprocess.run(
        [str(python), "-m", "dreambooth.engine", "toml", str(path)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=PROJECT,
        env=environment.engine_variables(),
    )
    try:
        content = json.loads(completed.stdout)
    except (ValueError, RecursionError):
        reason = (completed.stderr.strip().splitlines() or ["it said nothing"])[-1]
        mend = "run setup again (on the page: Set Up)"
        raise UserError(f"{path}: the engine could not read the file ({reason}); {mend}.") from None
    if completed.returncode:
        raise UserError(f"{path}: the file is not TOML ({content['problem']}).")
    if content.get("datasets"):
        return "kohya's dataset file", kohya_dataset.from_toml(content, disk.look)
    if sd_scripts.flat(content).keys() & sd_scripts.KNOWN:
        return "kohya's config file", sd_scripts.config_file(content, disk)
    raise UserError(
        f"{path}: the file has neither [[datasets]] nor an argument of kohya's scripts; only their dataset and config "
        "files can be imported."
    )


def _folders(path: Path, look: Look) -> Migration:
    train, of_class = (path / "img" if (path / "img").is_dir() else path), path / "reg"
    found = import_paths.named(train) or ([(path.name, str(path))] if kohya_dataset.FOLDER.fullmatch(path.name) else [])
    if not found:
        raise UserError(f"{path}: it holds no folders that are named after repeats and class, such as '10_sks dog'.")
    return kohya_dataset.from_folders(found, import_paths.named(of_class), look)


def _leave_out_what_is_not_touched(migration: Migration, base: Path) -> None:
    for key, value in list(migration.settings.items()):
        is_path = key.endswith(("_dir", "_file")) and isinstance(value, str) and value.strip()
        if is_path and (why := import_paths.why_not(value, base)):
            del migration.settings[key]
            migration.lines = [
                Line("left out", line.theirs, "", line.value, why) if line.ours == key else line
                for line in migration.lines
            ]


def _make_absolute(migration: Migration, base: Path) -> None:
    """A relative folder or file is meant from where the file lies."""
    for key, value in migration.settings.items():
        if key.endswith(("_dir", ".start_file")) and str(value).strip():
            migration.settings[key] = paths.within(base, value)
