"""What the files of a model's folder say of that folder, once it has another name: where previews and pictures lie, and
whose runs they are.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from dreambooth.core import run
from dreambooth.core.files import atomic
from dreambooth.core.project import Project

_TOLD_IN = ("*.json", "runs/*/*.json", "runs/*/events.jsonl", "errands/*/*.json", "errands/*/events.jsonl")


def retell(renamed: Project, before: Path) -> None:
    """Has settings, jobs and events name the folder and the model as they are called now. Raises OSError."""
    for job in run.jobs(renamed):
        atomic.write_text(job.folder / "job.json", json.dumps({**job.read(), "model": renamed.name}, indent=1))
    for pattern in _TOLD_IN:
        for file in renamed.folder.glob(pattern):
            _replace(file, before, renamed.folder)


def _replace(file: Path, before: Path, after: Path) -> None:
    """Writes a JSON file anew with other paths, a line at a time, as events may be very many; as it is if it has none.

    Python writes a letter beyond ASCII as it is or by its number; both are found.
    """
    told = [
        tuple(json.dumps(f"{folder}{os.sep}", ensure_ascii=escaped)[1:-1].encode() for folder in (before, after))
        for escaped in (True, False)
    ]
    with open(file, "rb") as lines:
        if not any(old in line for line in lines for old, _ in told):
            return
    with atomic.staged(file) as staged, open(file, "rb") as lines, open(staged, "wb") as out:
        for line in lines:
            for old, new in told:
                line = line.replace(old, new)
            out.write(line)
