"""The files of a result: which they are, whether they are still as the run wrote them, who needs them, and taking them
away.

The event of a result has in `files` the fingerprint of each file that was written for it, and when (in seconds): of the
result itself, which `path` names, and of what goes with it: a checkpoint's .yaml, the embeddings beside a LoRA, the
text that Imagic has fitted.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dreambooth.core import job_list, project
from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic, paths
from dreambooth.core.job_folder import Job
from dreambooth.core.job_history import Event
from dreambooth.core.models import checkpoint
from dreambooth.core.models.model_file import SUFFIXES
from dreambooth.core.project import Folders, Project

_LAYOUT = ".yaml"
_START_FILES = ("lora.start_file", "embedding.start_file")
_SAME_SECONDS = 3.0  # a disk may tell times in steps of two

Mark = tuple[str, float]


def marks(files: Iterable[Path]) -> dict[str, Mark]:
    """What the event of a result says of its files, by which each is known again. Raises OSError."""
    return {str(file): (checkpoint.fingerprint(file), file.stat().st_mtime) for file in files}


def are_among_results(folders: Folders, opened: Project, event: Event) -> bool:
    """Whether all files of a result lie where the model's results go. The events of a folder that came from elsewhere
    may name any file."""
    result, *others = _marked(event)
    if not opened.is_result(folders, result):
        return False
    beside = (result.with_suffix(_LAYOUT), opened.embedding(result))
    return all(file in beside or opened.is_result(folders, file) for file in others)


def is_unchanged(event: Event) -> bool:
    """Whether a result is there, and it and what goes with it are what the run wrote."""
    result = Path(event["path"])
    try:
        return result.is_file() and all(_is_as_written(event, *one) for one in _marked(event).items())
    except OSError:
        return False


def _is_as_written(event: Event, file: Path, mark: Mark | None) -> bool:
    """So is one that is gone: then there is nothing left to lose. A link is a file that a person has moved."""
    if file.is_symlink():
        return False
    if mark:
        return not file.exists() or checkpoint.fingerprint(file) == mark[0]
    is_counted = str(file) == event["path"] and event["kind"] != "embedding"  # by an earlier version, which marked none
    return not is_counted or file.stat().st_size == event["bytes"]


def was_written_to(event: Event) -> bool:
    """Whether a file of a result was written to since, which a fingerprint's samples need not show: by a person, or as
    it was copied. Raises OSError."""
    marked = ((file, mark) for file, mark in _marked(event).items() if mark and file.exists())
    return any(abs(file.stat().st_mtime - mark[1]) > _SAME_SECONDS for file, mark in marked)


def has_notes(event: Event) -> bool:
    """Whether a person has given a result a picture or notes in the WebUI, which lie beside it under its name."""
    result, *own = _marked(event)
    return any(
        file.name.startswith(f"{result.stem}.") and file not in own
        for file in result.parent.iterdir()
        if file.suffix.lower() not in (*SUFFIXES, _LAYOUT)
    )


def needed_by(folders: Folders, event: Event) -> str:
    """Who needs a result, in a sentence with what to do: a model that was made from it, one whose next run is to begin
    with it, a run that began with it and may go on, a short job that reads it. Empty where nobody does."""
    files = {os.path.realpath(file) for file in _marked(event)}
    for name in project.names(folders):
        with contextlib.suppress(UserError):  # one that is damaged needs nothing
            opened = project.open_project(folders, name)
            if os.path.realpath(opened.source) in files:
                return f"the model {name} was made from it; delete that model first."
            for job in job_list.jobs(opened):
                if not files.isdisjoint(_read_by(job)) and (status := _needing(job)):
                    return f"{job.title} works with it and is {status}; let it come to its end first."
            if key := next((key for key in _START_FILES if not files.isdisjoint(_named(opened.settings()[key]))), ""):
                return f"the next run of {name} is to begin with it; empty its {key} first."
    return ""


def _needing(job: Job) -> str:
    """The status of a job that is still to read its files; empty of one that reads them no more."""
    status = job.status()
    if status in ("running", "queued"):
        return status
    return status if job.is_run and (status == "paused" or job.states()) else ""


def _read_by(job: Job) -> set[str]:
    """The model files that a job's fields and settings name."""
    with contextlib.suppress(UserError):
        return set(_named([job.read_or_empty(), job.settings()]))
    return set()


def _named(value: Any) -> Iterator[str]:
    if isinstance(value, str) and value.lower().endswith(SUFFIXES) and not paths.problem(value):
        yield os.path.realpath(Path(value).expanduser())
    elif isinstance(value, (Mapping, list)):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _named(one)


def take_away(event: Event) -> int:
    """Removes a result, and then what goes with it, but for a .yaml that another checkpoint of the name has need of.
    Returns how many bytes that freed. Raises OSError where the result stays, and then all of it does."""
    result, *others = _marked(event)
    freed = result.stat().st_size
    atomic.remove(result)
    if any(result.with_suffix(suffix).exists() for suffix in SUFFIXES):
        others = [file for file in others if file.suffix != _LAYOUT]
    for file in others:
        with contextlib.suppress(OSError):  # gone, or in use
            size = file.stat().st_size
            freed += size if atomic.remove(file) else 0
    return freed


def _marked(event: Event) -> dict[Path, Mark | None]:
    """The files of a result with their marks, itself first; what an earlier version wrote has none."""
    files, embeddings = event.get("files"), event.get("embeddings")
    if not isinstance(files, dict):
        beside = embeddings.values() if isinstance(embeddings, dict) else ()
        files = {file: None for file in beside if isinstance(file, str)}
    found = {Path(file): _mark(one) for file, one in files.items() if "\x00" not in file}
    return {Path(event["path"]): None, **found}


def _mark(value: Any) -> Mark | None:
    """What an event says of a file; of a damaged one nothing that a file could be."""
    if value is None:
        return None
    is_whole = isinstance(value, list) and len(value) == 2 and isinstance(value[1], (int, float))
    return (str(value[0]), float(value[1])) if is_whole else ("", 0.0)
