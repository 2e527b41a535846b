"""Downloads of models from the hub: one at a time of each model, whichever window, program or process asks for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path

from dreambooth.core import job_list
from dreambooth.core.errors import UserError
from dreambooth.core.files import lock
from dreambooth.core.job_folder import Job
from dreambooth.core.models.hub import HubModel
from dreambooth.core.project import Folders
from dreambooth.service import launcher, queue

_LOCK_SECONDS = 30  # starting an engine takes less


def begin(folders: Folders, model: HubModel) -> Job:
    """The job that downloads a model: the one that is under way, or a new one.

    Raises UserError if it cannot be started; nothing of it is left then.
    """
    with _locked(folders):
        newest = _newest(folders, model)
        if newest and launcher.is_under_way(newest):
            return newest
        job = launcher.new_download(folders, model)
        queue.submit_new(job)
        return job


def finished(folders: Folders, model: HubModel) -> Path | None:
    """The file or folder that the newest download of a model has written; None if it is not done, or that is gone."""
    job = _newest(folders, model)
    if job is None or job.status() != "done":
        return None
    path = (job.story().ending or {}).get("path")
    return Path(path) if isinstance(path, str) and path and Path(path).exists() else None


@contextlib.contextmanager
def _locked(folders: Folders) -> Iterator[None]:
    """Nobody else begins a download meanwhile. Raises UserError where that cannot be had, and OSError."""
    folders.downloads.mkdir(parents=True, exist_ok=True)
    file = lock.acquire(folders.downloads / ".lock", seconds=_LOCK_SECONDS)
    if file is None:
        raise UserError("Another program is starting a download; try again in a moment.")
    with file:
        yield


def _newest(folders: Folders, model: HubModel) -> Job | None:
    """The newest download of exactly this model, file and revision."""
    for job in reversed(job_list.downloads(folders)):
        content = job.read_or_empty()
        if tuple(content.get(key) for key in ("repository", "file", "revision")) == astuple(model):
            return job
    return None
