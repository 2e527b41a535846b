"""One engine at a time on the device: what waits is started in its turn, and the WebUI lends its GPU meanwhile.

Everything that is known lies in the jobs' folders (requests/start is a job that waits), so the queue survives the
process that looks after it, and two processes that look after one models folder agree by a lock.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any, Protocol

from dreambooth.core import lock, run
from dreambooth.core.errors import UserError
from dreambooth.core.project import Folders, names, open_project
from dreambooth.core.run import Job
from dreambooth.service import environment, launcher

DEVICE_KINDS = ("train", "class-images", "generate", "tokens", "measure")
POLL_SECONDS = 1.0
KEPT_SECONDS = 24 * 3600  # an errand that has ended


class Lender(Protocol):
    """What the queue needs of the host."""

    def folders(self) -> Folders: ...
    def refresh(self) -> None: ...
    def lend_gpu(self) -> None: ...
    def take_gpu_back(self) -> None: ...


def submit(job: Job) -> dict[str, Any]:
    """Puts a job in the queue, or starts it at once where it needs no device.

    Raises UserError if the engine is not set up, or the job is at work or waits already.
    """
    if not environment.is_current():
        raise UserError("The engine is not set up yet; press Set up on the Dreambooth tab, or run setup.")
    if (status := job.status()) in ("running", "queued"):
        raise UserError(f"The run {job.name} is {status} already.")
    if job.read()["kind"] in DEVICE_KINDS:
        job.request("start")
    else:
        _reap(launcher.start(job, environment.python()))
    return {"job": job.name, "status": job.status()}


def _reap(process: subprocess.Popen[bytes]) -> None:
    """Waits for a process beside the caller, so that none is left behind as a zombie."""
    threading.Thread(target=process.wait, daemon=True).start()


def all_jobs(folders: Folders) -> Iterator[Job]:
    for name in names(folders):
        try:
            yield from run.jobs(open_project(folders, name))
        except UserError:  # a damaged model is shown elsewhere
            continue


class Queue:
    """Looks after the queue of one models folder, in one process."""

    def __init__(self, host: Lender) -> None:
        self.host = host
        self.starting: dict[Job, subprocess.Popen[bytes]] = {}
        self.at_work: set[Job] = set()
        self.looked_at = 0.0

    def tick(self) -> None:
        """Looks once: gives back what has ended, starts what comes next."""
        self._settle_starting()
        was_at_work, since = self.at_work, self.looked_at
        self.looked_at = time.time()
        candidates = [job for job in all_jobs(self.host.folders()) if self._may_be_alive(job, since)]
        self.at_work = {job for job in candidates if job.is_alive()}
        if was_at_work - self.at_work:
            self.host.refresh()
        if self.at_work or self.starting:
            self.host.lend_gpu()
            return
        if waiting := _waiting(self.host.folders()):
            self._start(waiting[0])
        else:
            self.host.take_gpu_back()

    def _may_be_alive(self, job: Job, since: float) -> bool:
        """Only jobs that said something lately are asked, so that many old runs cost nothing."""
        if not since or job in self.at_work:
            return _needs_device(job)
        try:
            return (job.folder / "events.jsonl").stat().st_mtime > since - 10 and _needs_device(job)
        except OSError:
            return False

    def _settle_starting(self) -> None:
        for job, process in list(self.starting.items()):
            ended = process.poll() is not None
            if ended or job.is_alive():
                job.clear_request("start")
                del self.starting[job]
                self.at_work.add(job)
                if not ended:
                    _reap(process)

    def _start(self, job: Job) -> None:
        held = lock.acquire(self.host.folders().projects / ".queue")
        if held is None:  # another process is starting something
            return
        try:
            if job.status() == "queued":
                self.host.lend_gpu()
                self.starting[job] = launcher.start(job, environment.python())
                time.sleep(0.2)
        except (UserError, OSError) as error:
            job.clear_request("start")
            with open(job.log, "a", encoding="utf-8") as log:
                print(f"The engine could not be started: {error}", file=log)
        finally:
            held.close()


def waiting(folders: Folders) -> list[str]:
    """The names of the jobs that wait, in their order."""
    return [job.name for job in _waiting(folders)]


def _waiting(folders: Folders) -> list[Job]:
    found = []
    for job in all_jobs(folders):
        try:
            found.append(((job.folder / "requests" / "start").stat().st_mtime_ns, job))
        except OSError:
            continue
    return [job for _, job in sorted(found, key=lambda pair: pair[0]) if job.status() == "queued"]


def _needs_device(job: Job) -> bool:
    try:
        return job.read()["kind"] in DEVICE_KINDS
    except (OSError, ValueError, KeyError):
        return False


def tidy(folders: Folders) -> None:
    """Removes errands that ended a day ago or longer; nobody waits for their answer any more."""
    for job in [*all_jobs(folders), *run.downloads(folders)]:
        is_old = job.folder.parent.name != "runs" and job.folder.stat().st_mtime < time.time() - KEPT_SECONDS
        if is_old and job.status() not in ("running", "queued"):
            shutil.rmtree(job.folder, ignore_errors=True)


_watcher: _Watcher | None = None


class _Watcher(threading.Thread):
    """The queue's thread. A WebUI that reloads its page keeps it; it gets the new page's host."""

    def __init__(self, host: Lender) -> None:
        super().__init__(name="dreambooth-queue", daemon=True)
        self.queue = Queue(host)

    def run(self) -> None:
        said = ""
        while True:
            try:
                self.queue.tick()
                said = ""
            except Exception as error:  # noqa: BLE001  (the next look may do better; it must not end)
                if str(error) != said:
                    said = str(error)
                    traceback.print_exc()
            time.sleep(POLL_SECONDS)


def watch(host: Lender) -> None:
    """Looks after the host's queue from now on. Called again, it goes on with the new host."""
    global _watcher
    if _watcher and _watcher.is_alive():
        _watcher.queue.host = host
        return
    tidy(host.folders())
    _watcher = _Watcher(host)
    _watcher.start()
