"""Starting engine processes and watching them. What is known of a job is read from its folder, so a
watcher can come and go."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dreambooth.core import job_folder, job_list
from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic
from dreambooth.core.install_paths import PROJECT
from dreambooth.core.job_folder import Job
from dreambooth.core.job_list import new_run as new_run
from dreambooth.core.models.hub import HubModel
from dreambooth.core.project import Folders, Project
from dreambooth.core.settings import Settings, to_json
from dreambooth.service import environment, exit_causes

POLL_SECONDS = 0.1
_START_SECONDS = 60  # that an engine may take until it holds its job

OnEvent = Callable[[dict[str, Any]], None]


def new_errand(folders: Folders, project: Project, kind: str, settings: Settings, **fields: Any) -> Job:
    """A short job beside the runs, such as check or generate."""
    job = {"kind": kind, "model": project.name, **job_folder.where(folders), **fields}
    return job_list.create(project.errands, job, to_json(settings))


def new_download(folders: Folders, model: HubModel) -> Job:
    """The errand that fetches a model from the hub."""
    job = {
        "kind": "download",
        **job_folder.where(folders),
        "repository": model.repository,
        "file": model.file,
        "revision": model.revision,
        "out": str(folders.downloads / model.folder_name),
    }
    return job_list.create(folders.download_errands, job, "{}")


def start(job: Job, python: Path, alone_seconds: float = 0, *, queued: bool = False) -> subprocess.Popen[bytes]:
    """Starts the engine on a job. It lives on without the caller; its output goes to the job's log.

    With `alone_seconds` it pauses when for so long nobody has looked after it (`Job.watch`). One that is `queued`
    leaves again where the job was taken out of the queue before it could begin. Raises UserError if an engine is at
    work on the job already.
    """
    if job.is_alive():
        raise UserError(f"{job.subject} is running already.")
    for request in job.requests():
        job.clear_request(request)
    flags: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        flags = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    with open(job.log, "ab") as log:
        process = subprocess.Popen(
            [str(python), "-m", "dreambooth.engine", str(job.folder), *(["queued"] if queued else [])],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=PROJECT,
            env={**environment.engine_variables(), "DREAMBOOTH_ALONE_SECONDS": str(alone_seconds)},
            **flags,
        )
    threading.Thread(target=exit_causes.note, args=(job, process), daemon=True).start()
    return process


def follow(job: Job, process: subprocess.Popen[bytes] | None, on_event: OnEvent, offset: int = 0) -> None:
    """Tells `on_event` of everything that happens until the engine ends. Ends early only by an exception.

    `process` is None for an engine that somebody else has started, and that is at work.
    """
    while True:
        ended = not job.is_alive() if process is None else process.poll() is not None
        events, offset = job.events(offset)
        for event in events:
            on_event(event)
        if ended and not events:
            if process:
                exit_causes.note(job, process)
            return
        if not ended:
            job.watch()
        if not events:
            time.sleep(POLL_SECONDS)


def kill(job: Job) -> None:
    """Ends a job's engine at once. Its number is its own as long as the job's lock is held."""
    started = job.story().last.get("started", {})
    if job.is_alive() and isinstance(started.get("pid"), int):
        with contextlib.suppress(OSError):
            os.kill(started["pid"], signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)


def result(job: Job) -> dict[str, Any]:
    """How the job ended. Raises UserError with its problems if it failed or was lost, or was an errand and stopped."""
    last = job.story().ending
    if last is None or last["event"] == "started":
        raise UserError(exit_causes.loss(job))
    if last["event"] == "failed":
        raise UserError(exit_causes.failure(job, last))
    if last["event"] == "stopped" and not job.is_run and job.read()["kind"] != "class-images":
        raise UserError("Stopped as asked; what was finished is kept.")
    return dict(last)


def tidy(job: Job) -> None:
    """Removes what nobody needs: an errand that has ended, or a run that was refused before it did anything.

    A job that broke keeps its folder, as its log says why.
    """
    last = job.story().ending or {}
    refused = last.get("event") == "failed" and last.get("refused") and not job.progress()
    if refused or (last.get("event") == "done" and not job.is_run):
        atomic.remove_folder(job.folder)


def is_under_way(job: Job) -> bool:
    """Whether a job waits, is at work, or was made so lately that its engine may be on its way."""
    status = job.status()
    if status != "new":
        return status in ("queued", "running")
    created = job.read_or_empty().get("created")
    return isinstance(created, (int, float)) and 0 <= time.time() - created < _START_SECONDS


def forget(job: Job) -> None:
    """Removes a job that could not be started, unless it did something before."""
    if not job.story().offset and job.status() == "new":
        atomic.remove_folder(job.folder)
