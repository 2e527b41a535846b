"""What no input may bring about, seen by Python itself: writing outside of a folder, starting a process, connecting to
anything, running a pickle, or going on for ever.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SECONDS = 3.0  # of the CPU for one input
STUCK_SECONDS = 60  # of the clock

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_PLACES = {  # audit events and how many of their first arguments are paths that change
    "os.mkdir": 1,
    "os.rmdir": 1,
    "os.remove": 1,
    "os.rename": 2,
    "os.link": 2,
    "os.truncate": 1,
    "os.chmod": 1,
    "os.utime": 1,
    "shutil.rmtree": 1,
}
_NEVER = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect", "pickle.find_class"}


class _Watch:
    """The only one; Python keeps its hooks for ever."""

    def __init__(self) -> None:
        self.inside: Path | None = None
        self.seen: list[str] = []
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        inside = self.inside
        if inside is None:
            return
        if event in _NEVER:
            self.seen.append(f"{event} {arguments!r}"[:300])
        elif event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & _WRITING and not isinstance(path, int):
                self._judge(event, path, inside)
        elif event == "os.symlink":
            self._judge(event, arguments[1], inside)
        else:
            for path in arguments[: _PLACES.get(event, 0)]:
                self._judge(event, path, inside)

    def _judge(self, event: str, path: Any, inside: Path) -> None:
        if isinstance(path, int):
            return
        whole = Path(os.fsdecode(path)).absolute().parent.resolve()
        if not whole.is_relative_to(inside) and os.fsdecode(path) != os.devnull:
            self.seen.append(f"{event} {os.fsdecode(path)!r}")


_watch = _Watch()


@contextlib.contextmanager
def confined(folder: Path) -> Iterator[None]:
    """Within it, what an input may not bring about becomes an AssertionError."""

    def stuck(*_: object) -> None:
        raise AssertionError(f"it went on for {STUCK_SECONDS} seconds")

    assert threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGALRM, stuck)
    signal.alarm(STUCK_SECONDS)
    _watch.inside, _watch.seen, began = folder.resolve(), [], time.process_time()
    try:
        yield
    finally:
        took, _watch.inside = time.process_time() - began, None
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert not _watch.seen, _watch.seen
    assert took < SECONDS, f"it took {took:.1f} seconds"
