"""A lock that its holder's death releases: nobody ever has to delete a lock file."""

from __future__ import annotations

import errno
import sys
import time
from pathlib import Path
from typing import IO

from dreambooth.core.errors import UserError

_TAKEN = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)  # by another process

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

    Somebody who only looks has the lock for a moment too, so whoever must not miss it tries for a second. Raises
    UserError where files cannot be locked.
    """
    end = time.monotonic() + seconds
    file = open(path, "ab")  # noqa: SIM115  (the lock lives as long as the file is open)
    while not _is_locked(file, path, shared=False):
        if time.monotonic() >= end:
            file.close()
            return None
        time.sleep(0.05)
    return file


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock. Raises UserError where files cannot be locked."""
    for _ in range(_LOOKS):
        try:
            file = open(path, "rb")  # noqa: SIM115  (others may look at what one user alone may change)
        except (FileNotFoundError, NotADirectoryError):
            return False
        with file:
            if _is_locked(file, path, shared=True):
                return False
        if _LOOKS > 1:
            time.sleep(0.01)
    return True


def _is_locked(file: IO[bytes], path: Path, *, shared: bool) -> bool:
    """Whether this process has the lock now."""
    try:
        _lock(file, shared=shared)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise UserError(
            f"{path}: files cannot be locked here ({error.strerror}); use a folder of another disk."
        ) from None
    return True
