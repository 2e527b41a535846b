"""One engine at a time on the device: what waits is started in its turn, and the WebUI lends its GPU meanwhile.

Everything that is known lies in the jobs' folders (requests/start is a job that waits), so the queue survives the
process that looks after it. Two processes that look after one models folder agree by a lock, and the engine itself has
the device by another (core/device.py), so whatever they do, two engines are never at work.
"""

from __future__ import annotations

import contextlib
import math
import subprocess
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, Protocol

from dreambooth.core import device, job_list, project
from dreambooth.core.errors import RUN_SETUP, Problem, UserError
from dreambooth.core.files import atomic, lock
from dreambooth.core.job_folder import Job
from dreambooth.core.project import Folders
from dreambooth.service import environment, launcher, preflight, relocation
from dreambooth.service.exit_causes import WAITS_ON

POLL_SECONDS = 1.0
WAITER = "a command waits"  # in a start request: it counts only as long as that command lives
KEPT_SECONDS = 24 * 3600  # an errand that has ended
TIDY_SECONDS = 24 * 3600  # from one look for such to the next
WRITES_BESIDE = ("export", "download")  # need no device, and may write a checkpoint


class Lender(Protocol):
    """What the queue needs of the host."""

    def folders(self) -> Folders: ...
    def refresh(self) -> None: ...
    def lend_gpu(self) -> None: ...
    def take_gpu_back(self) -> None: ...

    @property
    def alone_minutes(self) -> float: ...


def submit(job: Job, *, note: str = "") -> dict[str, Any]:
    """Puts a job in the queue, or starts it at once where it needs no device.

    Raises UserError if the engine is not set up, the job is at work or waits already, or would be refused at once.
    """
    python = environment.python()
    if not environment.is_current():
        raise UserError("The engine is not set up yet; press Set Up on the Dreambooth tab, or run setup.")
    _check_rests(job)
    preflight.check(job)
    if job.needs_device:
        _check_rests(job)  # the look at all pictures may have taken a while
        job.request("start", note)
        if job.is_alive() and job.clear_request("start"):  # another was faster by a moment, and its engine has begun
            _check_rests(job)
    else:
        process = launcher.start(job, python)
        if _watcher and job.read()["kind"] in WRITES_BESIDE:
            _watcher.queue.beside.append(process)
    return {"job": job.name, "status": job.status()}


def submit_new(job: Job) -> None:
    """As `submit`, of a job that was just made; one that is refused leaves nothing behind."""
    try:
        submit(job)
    except (UserError, OSError):
        launcher.forget(job)
        raise


def _check_rests(job: Job) -> None:
    if (status := job.status()) in ("running", "queued"):
        raise UserError(f"{job.subject} is {status} already.")


def take_turn(job: Job, host: Lender, say: Callable[[str], None]) -> None:
    """Waits in the queue, and looks after it meanwhile, until the job's engine is at work. Says what it waits for.

    Ending it by an exception takes the job out of the queue, and so does the caller's death; Ctrl-C asks an engine that
    was faster to pause. Raises UserError if the job leaves the queue without an engine.
    """
    announced, held, before = "", lock.acquire(job.folder / "waiter", seconds=1), job.story().offset
    try:
        submit(job, note=WAITER)
        looked = Queue(host)
        while job.waits:
            looked.tick()
            if (ahead := _ahead(job, host.folders())) and ahead != announced:
                announced = ahead
                say(ahead)
            time.sleep(0.2)
    except KeyboardInterrupt:
        if job.clear_request("start") or not job.is_alive():
            raise
        job.request("pause")  # its turn had just come
    except BaseException:
        job.clear_request("start")
        raise
    finally:
        if held:
            held.close()
    if job.story().offset == before and not job.is_alive():
        raise UserError(
            f"{job.subject} left the queue before its engine was at work: somebody took it out, or the engine "
            f"could not be started (its log, {job.log}, says why then)."
        )


def _ahead(job: Job, folders: Folders) -> str:
    """What a job waits for, in a sentence; empty if it is its turn."""
    at_work, waits = device.holder(folders), _waiting(folders)
    if at_work == job or job not in waits or (at_work is None and waits[0] == job):
        return ""
    before = waits.index(job)
    sentence = f"Waiting: {at_work.title if at_work else 'another job'} is at work"
    return f"{sentence}, and {before} more come first. Ctrl-C gives up." if before else f"{sentence}. Ctrl-C gives up."


def waits_for(job: Job, folders: Folders) -> Job | None:
    """The job that is at work before this one, or comes next before it; None if there is nothing but its own start."""
    before = device.holder(folders) or next(iter(_waiting(folders)), None)
    return None if before == job else before


class Queue:
    """Looks after the queue of one models folder, in one process."""

    def __init__(self, host: Lender) -> None:
        self.host = host
        self.starting: dict[Job, subprocess.Popen[bytes]] = {}
        self.at_work: Job | None = None
        self.written: tuple[Job | None, list[str]] = (None, [])
        self.beside: list[subprocess.Popen[bytes]] = []  # engines off the device that write files for the WebUI's lists

    def tick(self) -> None:
        """Looks once: gives back what has ended, starts what comes next."""
        self._settle_starting()
        self._settle_beside()
        folders = self.host.folders()
        busy, self.at_work = device.is_busy(folders), device.holder(folders)
        self._show_what_is_written()
        if busy or self.starting:
            self.host.lend_gpu()
            if self.at_work:
                with contextlib.suppress(OSError):  # its folder may be on its way to the trash
                    self.at_work.watch()
        elif (waiting := _waiting(folders)) and not environment.is_awaited():
            self._start(waiting[0])
        else:
            self.host.take_gpu_back()

    def _settle_starting(self) -> None:
        """Forgets engines that are at work by now, or ended before they were; one that was too early waits on."""
        for job, process in list(self.starting.items()):
            code = process.poll()
            if code is None and job.waits:
                continue
            if code not in (None, *WAITS_ON):
                job.clear_request("start")
            del self.starting[job]

    def _show_what_is_written(self) -> None:
        """Refreshes the WebUI's lists when the job at work has written or removed a file, and when it ends."""
        files = [event["path"] for event in self.at_work.story().saved] if self.at_work else []
        before, self.written = self.written, (self.at_work, files)
        if before != self.written and (before[0] or self.written[1]):
            self.host.refresh()

    def _settle_beside(self) -> None:
        working = [process for process in self.beside if process.poll() is None]
        if len(working) < len(self.beside):
            self.beside = working
            self.host.refresh()

    def _start(self, job: Job) -> None:
        held = lock.acquire(self.host.folders().projects / ".queue")
        if held is None:  # another process is starting something
            return
        try:
            if self._may_start(job):
                self.host.lend_gpu()  # waits for the picture that is being drawn, and people change their minds
            if self._may_start(job):
                job.come_to(_place(job, self.host.folders()))
                alone_seconds = 60 * self.host.alone_minutes
                self.starting[job] = launcher.start(job, environment.python(), alone_seconds, queued=True)
                time.sleep(0.2)
        except (UserError, OSError) as error:
            job.clear_request("start")
            if not job.is_alive():
                job.report("failed", **_not_started(error).as_json(), refused=False)
        finally:
            held.close()

    def _may_start(self, job: Job) -> bool:
        return job.status() == "queued" and not device.is_busy(self.host.folders())


def _not_started(error: UserError | OSError) -> UserError:
    if isinstance(error, UserError):
        return error
    return UserError(Problem(f"The engine could not be started ({error}).", "", RUN_SETUP))


def _place(job: Job, folders: Folders) -> Folders:
    """The folders that a job was given, which may be those of another WebUI with other flags; `folders`, among which it
    was found, if it has been moved since."""
    given = job.folders()
    return given if (given.models, given.projects) == (folders.models, folders.projects) else folders


def waiting(folders: Folders) -> list[str]:
    """The names of the jobs that wait, in their order."""
    return [job.name for job in _waiting(folders)]


def _waiting(folders: Folders) -> list[Job]:
    found = []
    for job in job_list.all_jobs(folders):
        request = job.folder / "requests" / "start"
        try:
            asked, note = request.stat().st_mtime_ns, request.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        if note == WAITER and not lock.is_held(job.folder / "waiter"):
            job.leave_queue()  # the command that waited is gone
        else:
            found.append((asked, job))
    return [job for _, job in sorted(found, key=lambda pair: pair[0]) if job.status() == "queued"]


def tidy(folders: Folders) -> None:
    """Removes errands that ended a day ago or longer, as nobody waits for their answer any more, and what is left of
    models whose making was ended as long ago."""
    for doing in (project.CREATING, project.COPYING):
        atomic.sweep_folders(folders.projects, doing)
    for job in [*job_list.all_jobs(folders), *job_list.downloads(folders)]:
        with contextlib.suppress(OSError, UserError):  # one that cannot be read, or that another process has removed
            is_old = not job.is_run and job.folder.stat().st_mtime < time.time() - KEPT_SECONDS
            if is_old and job.status() not in ("running", "queued"):
                atomic.remove_folder(job.folder)


_watcher: _Watcher | None = None


class _Watcher(threading.Thread):
    """The queue's thread. A WebUI that reloads its page keeps it; it gets the new page's host."""

    def __init__(self, host: Lender) -> None:
        super().__init__(name="dreambooth-queue", daemon=True)
        self.queue, self.last_error = Queue(host), ""

    def run(self) -> None:
        self._guarded(lambda: relocation.follow(self.queue.host.folders()))
        tidied = -math.inf
        while True:
            if time.monotonic() - tidied > TIDY_SECONDS:  # a WebUI may be open for weeks
                tidied = time.monotonic()
                self._guarded(lambda: tidy(self.queue.host.folders()))
            self._guarded(self.queue.tick)
            time.sleep(POLL_SECONDS)

    def _guarded(self, do: Callable[[], None]) -> None:
        try:
            do()
            self.last_error = ""
        except Exception as error:  # noqa: BLE001  (the next look may do better; it must not end)
            if str(error) != self.last_error:
                self.last_error = str(error)
                traceback.print_exc()


def watch(host: Lender) -> None:
    """Looks after the host's queue from now on. Called again, it goes on with the new host."""
    global _watcher
    if _watcher and _watcher.is_alive():
        _watcher.queue.host = host
        return
    _watcher = _Watcher(host)
    _watcher.start()
