"""Writing so that a crash or a full disk leaves either the old file or the new one, never half of one."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

STAGED = ".tmp"  # how the name of a file ends that is being written; it begins with a dot
_PRIVATE = 0o600
_NOT_OF_FOLDERS = (errno.EINVAL, errno.EBADF, errno.ENOTSUP)  # what syncing one is answered with on some shared disks
_ABANDONED_SECONDS = 3600
_ABANDONED_FOLDER_SECONDS = 24 * 3600
# Windows lets nobody move or remove what another process reads just then, be it a virus scanner or our own page.
_PATIENCE_SECONDS = 3.0 if os.name == "nt" else 0.0
# Nor does it let anybody open what is being replaced just then; who has no right to read is told so soon all the same.
_READING_SECONDS = 0.5 if os.name == "nt" else 0.0

_Got = TypeVar("_Got")


@contextlib.contextmanager
def staged(path: Path, *, private: bool = False) -> Iterator[Path]:
    """A name to write a file under. When the block ends, the file is on the disk and takes the place of `path`; when it
    ends by an exception, `path` is as it was and nothing else is left. A private one is read by nobody else, as is one
    that takes the place of such. An OSError that names no file, or the other name, names `path`.
    """
    start = path.name.encode(errors="surrogateescape")[:150].decode(errors="ignore")
    name = path.with_name(f".{start}.{os.getpid()}-{threading.get_ident()}{STAGED}")
    try:
        if private or _is_private(path):
            name.touch(_PRIVATE)
        yield name
        _sync(name)
        move(name, path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, name, str(name)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        discard(name)


def _is_private(path: Path) -> bool:
    return os.name != "nt" and path.exists() and stat.S_IMODE(path.stat().st_mode) == _PRIVATE


@contextlib.contextmanager
def staged_folder(path: Path, doing: str) -> Iterator[Path]:
    """The same for a new folder: one to write into, which becomes `path` when the block ends; by then all that was
    written or copied into it is on the disk."""
    name = Path(tempfile.mkdtemp(prefix=f".{doing}-", dir=path.parent))
    try:
        yield name
        name.chmod(0o755)
        _sync_all(name)
        move(name, path)
    finally:
        shutil.rmtree(name, ignore_errors=True)


def move(source: Path, target: Path) -> None:
    """Gives a file or a folder another name on the same disk, in place of a file that has it. Raises OSError."""
    _patiently(lambda: os.replace(source, target))


def remove(path: Path) -> bool:
    """Removes a file; one that is gone is well. Returns whether it was there. Raises OSError."""
    try:
        _patiently(path.unlink)
    except FileNotFoundError:
        return False
    return True


def discard(path: Path) -> None:
    """Removes what was written in vain, as far as that can be removed: what went wrong before is told, not this."""
    with contextlib.suppress(OSError):
        remove(path)


def remove_folder(folder: Path) -> None:
    """Removes a folder with what is in it, as far as that can be removed; an engine's last moments hold its log."""
    with contextlib.suppress(OSError):
        _patiently(lambda: _remove_all(folder))


def _remove_all(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        raise PermissionError(errno.EACCES, "something in the folder is in use", str(folder))


def read(path: Path) -> bytes:
    """What is in a file that another process or thread may be replacing. Raises OSError."""
    return _patiently(path.read_bytes, _READING_SECONDS)


def _patiently(change: Callable[[], _Got], seconds: float | None = None) -> _Got:
    end = time.monotonic() + (_PATIENCE_SECONDS if seconds is None else seconds)
    while True:
        try:
            return change()
        except PermissionError:
            if time.monotonic() >= end:
                raise
            time.sleep(0.05)


def sweep(folder: Path) -> None:
    """Removes what writers that were killed have left in a folder an hour ago or longer."""
    before = time.time() - _ABANDONED_SECONDS
    for path in folder.glob(f".*{STAGED}") if folder.is_dir() else ():
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < before:
                path.unlink()


def sweep_folders(folder: Path, doing: str) -> None:
    """The same of new folders, a day ago or longer: a model is copied for a while."""
    before = time.time() - _ABANDONED_FOLDER_SECONDS
    with contextlib.suppress(OSError):
        for path in folder.glob(f".{doing}-*"):
            if path.is_dir() and path.stat().st_mtime < before:
                shutil.rmtree(path, ignore_errors=True)


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    write_bytes(path, text.encode(), private=private)


def write_bytes(path: Path, data: bytes, *, private: bool = False) -> None:
    with staged(path, private=private) as name:
        name.write_bytes(data)


def sync_folder(folder: Path) -> None:
    """Makes the folder's own entries durable, where the disk can (Windows does this by itself)."""
    if os.name != "nt":
        try:
            _sync(folder)
        except OSError as error:
            if error.errno not in _NOT_OF_FOLDERS:
                raise


def _sync_all(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        if path.is_symlink():
            continue
        if path.is_dir():
            sync_folder(path)
        elif path.is_file():
            with contextlib.suppress(PermissionError):  # a copy of what may not be written to; only Windows minds
                _sync(path)


def _sync(path: Path) -> None:
    """Windows syncs only what is open for writing, and no folders."""
    descriptor = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0) if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
