"""Who is using something: a folder with a locked file for each. A process that dies, however, is out at once."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import IO

from dreambooth.core.files import lock


def enter(folder: Path) -> IO[bytes]:
    """The calling process is among the users as long as the returned file is open."""
    folder.mkdir(exist_ok=True)
    while True:
        descriptor, name = tempfile.mkstemp(prefix=f"{os.getpid()}-", dir=folder)
        os.close(descriptor)
        os.chmod(name, 0o644)  # whoever counts may be another user
        # Whoever counts may have the lock for a moment, or have taken the file for a dead one's.
        if (held := lock.acquire(Path(name), seconds=1)) and Path(name).exists():
            return held


def users(folder: Path) -> int:
    """How many living processes are in; what dead ones left is removed."""
    count = 0
    for path in folder.glob("*-*"):
        if lock.is_held(path):
            count += 1
        else:
            try:
                path.unlink(missing_ok=True)
            except OSError:  # Windows: somebody is opening it
                count += 1
    return count
