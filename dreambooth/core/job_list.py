"""The jobs that there are, of a model or of all, and how a new one's folder is made (its contents: job_folder.py)."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dreambooth.core import job_folder
from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic
from dreambooth.core.job_folder import Job
from dreambooth.core.project import Folders, Project, names, open_project
from dreambooth.core.settings import Settings, to_json, write_json


def new_run(folders: Folders, project: Project, settings: Settings) -> Job:
    """A new training run with its settings frozen; not started yet."""
    job = {"kind": "train", "model": project.name, **job_folder.where(folders)}
    return create(project.runs, job, to_json(settings))


def create(parent: Path, job: dict[str, Any], settings_json: str) -> Job:
    """A new job's folder under `parent`, numbered after the last."""
    parent.mkdir(parents=True, exist_ok=True)
    number = max((int(path.name) for path in parent.iterdir() if path.name.isdecimal()), default=0) + 1
    while True:
        folder = parent / f"{number:04}"
        try:
            folder.mkdir()
            break
        except FileExistsError:  # another process took the number
            number += 1
    try:
        write_json(folder / "settings.json", settings_json)
        atomic.write_text(folder / "job.json", json.dumps({"version": 1, "created": time.time(), **job}, indent=1))
    except OSError:
        atomic.remove_folder(folder)
        raise
    return Job(folder)


def runs(project: Project) -> list[Job]:
    """The training runs of a model, oldest first."""
    return _jobs(project.runs)


def errands(project: Project) -> list[Job]:
    """A model's short jobs that are under way, or were and are kept; oldest first."""
    return _jobs(project.errands)


def jobs(project: Project) -> list[Job]:
    return runs(project) + errands(project)


def downloads(folders: Folders) -> list[Job]:
    """The errands that fetch models from the hub."""
    return _jobs(folders.download_errands)


def _jobs(parent: Path) -> list[Job]:
    if not parent.exists():
        return []
    return [Job(path.parent) for path in sorted(parent.glob("*/job.json")) if path.parent.name.isdecimal()]


def all_runs(folders: Folders) -> Iterator[Job]:
    """Of all models but those that are damaged."""
    for project in _sound(folders):
        yield from runs(project)


def all_jobs(folders: Folders) -> Iterator[Job]:
    """Of all models but those that are damaged."""
    for project in _sound(folders):
        yield from jobs(project)


def _sound(folders: Folders) -> Iterator[Project]:
    for name in names(folders):
        with contextlib.suppress(UserError):
            yield open_project(folders, name)


def current(found: Sequence[Job]) -> Job | None:
    """Of a model's runs the one that is at work or waits for its turn, else the last; None without any."""
    at_work = (job for job in reversed(found) if job.is_alive() or job.waits)
    return next(at_work, found[-1] if found else None)


def find(folders: Folders, run: str) -> Job:
    """The run called NAME/3, or the current run of NAME. Raises UserError if there is none."""
    name, _, number = run.partition("/")
    found = runs(open_project(folders, name))
    if not number:
        if job := current(found):
            return job
        raise UserError(f"The model {name!r} has no runs yet.")
    for job in found:
        if number.isdecimal() and int(job.folder.name) == int(number):
            return job
    known = ", ".join(job.name for job in found) or "none"
    raise UserError(f"There is no run {run!r} (there: {known}).")
