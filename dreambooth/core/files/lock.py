"""A lock that its holder's death releases: nobody ever has to delete a lock file."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import IO

if sys.platform == "win32":
    import msvcrt

    _LOOKS = 5  # Windows knows no shared locks: two who look at once can take each other for the holder

    def _lock(file: IO[bytes], *, shared: bool) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    _LOOKS = 1

    def _lock(file: IO[bytes], *, shared: bool) -> None:
        fcntl.flock(file.fileno(), (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


def acquire(path: Path, *, seconds: float = 0) -> IO[bytes] | None:
    """The open lock file, to be kept as long as the lock is needed; None if another process holds it.

    Somebody who only looks has the lock for a moment too, so whoever must not miss it tries for a second.
    """
    return _open_locked(path, seconds, shared=False)


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock."""
    if not path.exists():
        return False
    for _ in range(_LOOKS):
        if file := _open_locked(path, 0, shared=True):
            file.close()
            return False
        if _LOOKS > 1:
            time.sleep(0.01)
    return True


def _open_locked(path: Path, seconds: float, *, shared: bool) -> IO[bytes] | None:
    end = time.monotonic() + seconds
    file = open(path, "ab")  # noqa: SIM115  (the lock lives as long as the file is open)
    while True:
        try:
            _lock(file, shared=shared)
            return file
        except OSError:
            if time.monotonic() >= end:
                file.close()
                return None
            time.sleep(0.05)
