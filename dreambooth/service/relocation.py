"""What the files of a model's folder say of that folder, once it has another name or lies elsewhere: where previews and
pictures lie, and whose runs they are.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

from dreambooth.core import job_list, model_record, project
from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic
from dreambooth.core.project import Folders, Project
from dreambooth.service import settings_lock

_FILES_WITH_PATHS = ("*.json", "runs/*/*.json", "runs/*/events.jsonl", "errands/*/*.json", "errands/*/events.jsonl")
# Behind what cannot be a folder's name: a letter is none, but for those that JSON writes a new line or a tab with.
_PATH_BEGINS = rb"(?:(?<![\w.)\]\x80-\xff-])|(?<=\\[nrt]))"

Change = Callable[[bytes], bytes]


def rewrite_after_rename(renamed: Project, before: Path) -> None:
    """Has settings, jobs and events name the folder and the model as they are called now, but for jobs that are
    damaged. Raises OSError."""
    for job in job_list.jobs(renamed):
        if content := job.read_or_empty():
            atomic.write_text(job.folder / "job.json", json.dumps({**content, "model": renamed.name}, indent=1))
    _rewrite(renamed, _other_paths(before, renamed.folder))
    model_record.note_place(renamed.folder, renamed.folder)


def follow(folders: Folders) -> None:
    """Has the files of each model that was moved, as with its WebUI, name what came along where it is now.

    One that is damaged, at work, or may not be written is left as it is, for the next time.
    """
    for name in project.names(folders):
        with contextlib.suppress(UserError, OSError):
            _follow(folders, project.open_project(folders, name))


def _follow(folders: Folders, opened: Project) -> None:
    before = model_record.place_of(opened.folder)
    if before == opened.folder or any(job.is_alive() for job in job_list.jobs(opened)):
        return
    if before:
        if before.exists():  # this is a copy, or the same folder by another path: what is named is still there
            return
        _rewrite(opened, _found_paths(*_roots(folders, before, opened.folder)))
    model_record.note_place(opened.folder, opened.folder)


def _roots(folders: Folders, before: Path, after: Path) -> tuple[Path, Path]:
    """What was moved, as it was called and as it is: the model's folder, or up to a whole WebUI around it."""
    top = folders.models.parent if after.is_relative_to(folders.models.parent) else folders.projects
    while after != top and before.name and before.name == after.name:
        before, after = before.parent, after.parent
    return before, after


def _other_paths(before: Path, after: Path) -> Change:
    """Names a folder anew in every path, also in the midst of a sentence, but not where a longer path ends as its own
    does, as in a copy of the whole disk."""
    replacements = [
        (re.compile(_PATH_BEGINS + re.escape(old)), new.replace(b"\\", rb"\\"))
        for old, new in zip(_json_beginnings(before), _json_beginnings(after), strict=True)
    ]

    def change(line: bytes) -> bytes:
        for old, new in replacements:
            line = old.sub(new, line)
        return line

    return change


def _found_paths(before: Path, after: Path) -> Change:
    """Names a folder anew in the paths of what is gone from there and is here."""
    starts = b"|".join(re.escape(old) for old in dict.fromkeys(_json_beginnings(before)))
    path = re.compile(rb'"(?:%s)(?:[^"\\]|\\.)*"' % starts)

    def moved_path(match: re.Match[bytes]) -> bytes:
        try:
            old = Path(json.loads(match[0]))
            new = after / old.relative_to(before)
            return json.dumps(str(new)).encode() if new.exists() and not old.exists() else match[0]
        except (ValueError, OSError):  # no path, or one that no disk takes
            return match[0]

    return lambda line: path.sub(moved_path, line)


def _json_beginnings(folder: Path) -> list[bytes]:
    """How a folder begins a path in a JSON file: Python writes a letter beyond ASCII as it is or by its number."""
    starts = [json.dumps(f"{folder}{os.sep}", ensure_ascii=escaped)[1:-1] for escaped in (True, False)]
    return [start.encode(errors="backslashreplace") for start in starts]


def _rewrite(opened: Project, change: Change) -> None:
    """Writes the files of a model anew where a change changes them, a line at a time, as events may be very many."""
    for pattern in _FILES_WITH_PATHS:
        for file in opened.folder.glob(pattern):
            are_settings = file.parent == opened.folder
            with settings_lock.changing(opened) if are_settings else contextlib.nullcontext():
                _rewrite_file(file, change)


def _rewrite_file(file: Path, change: Change) -> None:
    with open(file, "rb") as lines:
        if all(change(line) == line for line in lines):
            return
    with atomic.staged(file) as staged, open(file, "rb") as lines, open(staged, "wb") as out:
        out.writelines(map(change, lines))
