"""A job like any other, with the WebUI itself at work on it, in a thread of its own."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from typing import Any

from dreambooth.core import job_folder, job_list
from dreambooth.core.errors import Problem, UserError
from dreambooth.core.job_folder import Job
from dreambooth.core.project import Folders, Project
from dreambooth.core.settings import Settings, to_json

Do = Callable[[Job], dict[str, Any]]  # looks for a request to stop by itself; returns what the job has to say

_START_SECONDS = 5


def begin(folders: Folders, opened: Project, kind: str, chosen: Settings, fields: dict[str, Any], do: Do) -> Job:
    """A new job, which is done from now on. `kind` is one of those that the WebUI works on."""
    content = {"kind": kind, "model": opened.name, **job_folder.where(folders), **fields}
    job, started = job_list.create(opened.errands, content, to_json(chosen)), threading.Event()
    threading.Thread(target=_work, args=(job, do, started), name=f"dreambooth-{kind}", daemon=True).start()
    started.wait(_START_SECONDS)
    return job


def _work(job: Job, do: Do, started: threading.Event) -> None:
    held = job.hold()
    if held is None:
        return
    with held:
        job.report("started", kind=job.read()["kind"])
        started.set()
        try:
            result = do(job)
        except UserError as error:
            job.report("failed", **error.as_json(), refused=True)
        except Exception as error:  # noqa: BLE001  (the thread ends here; it becomes an event)
            traceback.print_exc()
            message = f"The WebUI broke off: {str(error)[:200] or type(error).__name__}."
            problem = Problem(message, do="Look at the WebUI's console, which says more.")
            job.report("failed", **UserError(problem).as_json(), refused=True)
        else:
            job.report("stopped" if "stop" in job.requests() else "done", **result)
