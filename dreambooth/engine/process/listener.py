"""A thread that answers a person's requests while the engine does something that does not look for them: imports, a
long read, writing a large file. It reports each request at once and, where nothing would be lost, interrupts the main
thread.

The training loop and previews look for requests at each of their steps; meanwhile the listener only reports them.
"""

from __future__ import annotations

import _thread
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from dreambooth.core.job_folder import ENDINGS, Ending, Job

LOOK_SECONDS = 0.2
ALONE_VARIABLE = "DREAMBOOTH_ALONE_SECONDS"  # until a job nobody looks after pauses; 0 or empty: never


def asked_to_end(job: Job) -> Ending | None:
    """How a person asked the job to end; None if nobody did."""
    requests = job.requests()
    return next((ending for request, ending in ENDINGS.items() if request in requests), None)


def ends_at_once(job: Job) -> tuple[str, ...]:
    """The requests that end a job before training begins. A run that has trained before is not simply ended by a stop:
    it goes on until its result is written."""
    return ("pause", "discard") if job.states() else ("pause", "stop", "discard")


class Listener(threading.Thread):
    """Looks at the job's requests as long as the process lives."""

    def __init__(self, job: Job) -> None:
        super().__init__(name="listener", daemon=True)
        self.job = job
        self.ends: frozenset[str] = frozenset()  # the requests that interrupt the main thread
        self.has_ended = False
        self._heard: set[str] = set()
        self._alone = _Alone(job)

    def let_end(self, *requests: str) -> None:
        """From now on these requests raise a KeyboardInterrupt in the main thread."""
        self.ends = frozenset(requests)

    def run(self) -> None:
        while True:
            time.sleep(LOOK_SECONDS)
            try:
                self._look()
            except OSError:  # the disk is full or not reachable, perhaps not at the next look
                continue

    def _look(self) -> None:
        if self._alone.too_long():
            self.job.report("alone", seconds=self._alone.limit)
            self.job.request("pause")
        requests = self.job.requests()
        for request in sorted(requests - self._heard):
            self.job.report("heard", request=request)
        self._heard = requests
        if requests & self.ends and not self.has_ended:
            self.has_ended = True
            self.ends = frozenset()
            _thread.interrupt_main()


def take_signals(job: Job) -> None:
    """Ctrl-C raises KeyboardInterrupt; SIGTERM, as of a system that shuts down, asks the job to pause."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: job.request("pause"))


class _Alone:
    """Whether nobody has looked after the job for too long. It is counted on this process's monotonic clock, so that
    setting the time or suspending the computer does not count."""

    def __init__(self, job: Job) -> None:
        self.mark = job.folder / "watched"
        self.limit = _seconds(os.environ.get(ALONE_VARIABLE, ""))
        self.seen = _changed(self.mark)
        self.since = time.monotonic()

    def too_long(self) -> bool:
        """True once for each absence."""
        if not self.limit:
            return False
        now, seen = time.monotonic(), _changed(self.mark)
        if seen != self.seen:
            self.seen, self.since = seen, now
        if now - self.since < self.limit:
            return False
        self.since = now
        return True


def _seconds(text: str) -> float:
    try:
        return max(0.0, float(text))
    except ValueError:
        return 0.0


def _changed(path: Path) -> Any:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
