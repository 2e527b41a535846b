"""Hears what a person asks for while the engine is at work on something that does not look: imports, a long read, the
writing of a large file. Says at once that it was heard, and where nothing would be lost, ends what is being done.

The loop looks by itself at every step, and so do previews at every step of theirs; there the listener only hears.
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
ALONE_VARIABLE = "DREAMBOOTH_ALONE_SECONDS"  # how long an engine goes on with nobody there; 0 or nothing: for ever


def asked_to_end(job: Job) -> Ending | None:
    """How a person asked the job to end; None if nobody did."""
    requests = job.requests()
    return next((ending for request, ending in ENDINGS.items() if request in requests), None)


def ends_at_once(job: Job) -> tuple[str, ...]:
    """The requests that end a job before training begins. What a run learned before is not thrown away: stopping it
    goes on to where its result is written."""
    has_learned = job.state.is_dir() and any(job.state.iterdir())
    return ("pause", "discard") if has_learned else ("pause", "stop", "discard")


class Listener(threading.Thread):
    """Looks at the job's requests as long as the process lives."""

    def __init__(self, job: Job) -> None:
        super().__init__(name="listener", daemon=True)
        self.job = job
        self.ends: frozenset[str] = frozenset()  # the requests that end whatever the engine is doing
        self.has_ended = False
        self._heard: set[str] = set()
        self._alone = _Alone(job)

    def let_end(self, *requests: str) -> None:
        """From now on these requests end whatever is being done, by a KeyboardInterrupt in the main thread."""
        self.ends = frozenset(requests)

    def run(self) -> None:
        while True:
            time.sleep(LOOK_SECONDS)
            try:
                self._look()
            except OSError:  # a disk that is full or away; the next look may do better
                continue

    def _look(self) -> None:
        if self._alone.too_long():
            self.job.report("alone", seconds=self._alone.limit)
            self.job.request("pause")
        asked = self.job.requests()
        for request in sorted(asked - self._heard):
            self.job.report("heard", request=request)
        self._heard = asked
        if asked & self.ends and not self.has_ended:
            self.has_ended = True
            self.ends = frozenset()
            _thread.interrupt_main()


def take_signals(job: Job) -> None:
    """Ctrl-C is the listener's; a system that shuts down, and whoever ends the process politely, asks to pause."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: job.request("pause"))


class _Alone:
    """Whether nobody has looked after the job for too long. Counted on this process's own clock, so that a clock that
    is set, or a computer that slept, makes nobody absent."""

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
