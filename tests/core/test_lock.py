"""Locks, also as file systems and users have them that are rarer than ours."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import IO

import pytest

from dreambooth.core.errors import UserError
from dreambooth.core.files import lock, occupancy


def test_one_holds_it_and_others_see_that(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not lock.is_held(path) and not path.exists(), "who looks leaves nothing behind"
    held = lock.acquire(path)
    assert held and lock.is_held(path) and lock.acquire(path) is None
    held.close()
    assert not lock.is_held(path)


@pytest.mark.skipif(os.name == "nt", reason="of NFS")
def test_a_lock_on_nfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There a shared lock wants a file that is open for reading, and an exclusive one a file open for writing."""
    really = lock._lock

    def of_nfs(file: IO[bytes], *, shared: bool) -> None:
        if not (file.readable() if shared else file.writable()):
            raise OSError(errno.EBADF, "Bad file descriptor")
        really(file, shared=shared)

    monkeypatch.setattr(lock, "_lock", of_nfs)
    test_one_holds_it_and_others_see_that(tmp_path)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS])
def test_where_no_file_can_be_locked_nobody_seems_to_hold_one(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: IO[bytes], *, shared: bool) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(lock, "_lock", refuse)
    path = tmp_path / "lock"
    path.touch()
    for ask in (lock.is_held, lock.acquire):
        with pytest.raises(
            UserError, match=r"lock: files cannot be locked here \(.*\); use a folder of another disk\."
        ):
            ask(path)


@pytest.mark.skipif(os.name == "nt", reason="of users on Linux")
def test_another_user_can_count_who_is_in(tmp_path: Path) -> None:
    with occupancy.enter(tmp_path / "users"):
        (file,) = (tmp_path / "users").iterdir()
        assert stat.S_IMODE(file.stat().st_mode) & stat.S_IROTH
        assert occupancy.users(tmp_path / "users") == 1
    assert occupancy.users(tmp_path / "users") == 0
