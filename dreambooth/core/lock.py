"""A lock that its holder's death releases: nobody ever has to delete a lock file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import IO

if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[bytes]) -> None:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(file: IO[bytes]) -> None:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


def acquire(path: Path) -> IO[bytes] | None:
    """The open lock file, to be kept as long as the lock is needed; None if another process holds it."""
    file = open(path, "ab")  # noqa: SIM115  (the lock lives as long as the file is open)
    try:
        _lock(file)
    except OSError:
        file.close()
        return None
    return file


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock."""
    if not path.exists():
        return False
    file = acquire(path)
    if file is None:
        return True
    file.close()
    return False
