"""One change of a model's settings at a time, among the threads of this process and among processes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from dreambooth.core.errors import UserError
from dreambooth.core.files import lock
from dreambooth.core.project import Project

FILE = "settings.lock"  # in the model's folder
_WAIT_SECONDS = 30  # fitting settings to a card opens every picture
_threads = threading.RLock()
_held: set[Path] = set()  # model folders whose file this process has locked; read and changed under _threads


@contextlib.contextmanager
def changing(opened: Project) -> Iterator[None]:
    """Held from the reading of a model's settings until what was changed of them is written, or of two changes at once,
    such as a draft that the page saves and a command's, one would be lost. It may be nested.

    Raises UserError where another process keeps the lock, or files cannot be locked, and OSError where the lock file
    cannot be written.
    """
    with _threads, contextlib.ExitStack() as stack:
        if opened.folder not in _held and opened.folder.is_dir():  # one that is gone has no settings to lose
            file = lock.acquire(opened.folder / FILE, seconds=_WAIT_SECONDS)
            if file is None:
                raise UserError(
                    f"{opened.folder}: another program is changing this model's settings; try again in a moment."
                )
            stack.enter_context(file)
            _held.add(opened.folder)
            stack.callback(_held.discard, opened.folder)
        yield
