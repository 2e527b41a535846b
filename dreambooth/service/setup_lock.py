"""One set-up of an environment at a time: two never write into the same one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from dreambooth.core.errors import UserError
from dreambooth.core.files import lock
from dreambooth.service.packages import Progress


@contextlib.contextmanager
def held(path: Path, progress: Progress) -> Iterator[bool]:
    """Holds the lock file of an environment, and waits for another set-up that does. Yields whether there was one.
    Raises UserError where this user may not write it."""
    try:
        file = lock.acquire(path)
    except PermissionError:
        raise UserError(f"{path.parent}: this user may not write here; set up as the one whose folder it is.") from None
    has_waited = file is None
    if has_waited:
        progress("Another set-up is running; waiting for it")
    while file is None:
        time.sleep(1)
        file = lock.acquire(path)
    with file:
        yield has_waited
