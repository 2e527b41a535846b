"""What is written takes its place only when it is on the disk."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

import pytest

from dreambooth.core.files import atomic
from dreambooth.core.files.json_file import read_object


@pytest.mark.skipif(os.name == "nt", reason="inodes tell which file was synced")
def test_all_that_was_copied_into_a_new_folder_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, made, order = tmp_path / "given", tmp_path / "made", list[int | str]()
    (given / "pictures").mkdir(parents=True)
    for name in ("model.json", "pictures/1.png"):
        (given / name).write_text(name)
    (given / "pictures" / "1.png").chmod(0o444)
    (given / "elsewhere").symlink_to(tmp_path)
    sync, move = os.fsync, atomic.move
    monkeypatch.setattr(os, "fsync", lambda opened: (order.append(os.fstat(opened).st_ino), sync(opened))[1])
    monkeypatch.setattr(atomic, "move", lambda *named: (order.append("named"), move(*named))[1])
    with atomic.staged_folder(made, "copying") as staged:
        shutil.copytree(given, staged, symlinks=True, dirs_exist_ok=True)
    copied = {path.stat().st_ino for path in (made, *made.rglob("*")) if not path.is_symlink()}
    assert copied == set(order[: order.index("named")])


def test_what_is_being_replaced_is_read_a_moment_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Windows has it: whoever renames a file over another one holds the name until that is done."""
    path, read, refused = tmp_path / "file.json", Path.read_bytes, []
    path.write_text('{"new": 1}')

    def refuse_twice(self: Path) -> bytes:
        if len(refused) < 2:
            refused.append(self)
            raise PermissionError(13, "The process cannot access the file", str(self))
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", refuse_twice)
    monkeypatch.setattr(atomic, "_READING_SECONDS", 60)
    assert read_object(path) == {"new": 1} and refused == [path, path]


def test_what_an_editor_of_windows_has_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text('{"general.seed": 1}', encoding="utf-8-sig")
    assert read_object(path) == {"general.seed": 1}


@pytest.mark.skipif(os.name == "nt", reason="Windows syncs no folders")
def test_a_disk_that_syncs_no_folders_takes_files_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some that are shared with other computers or systems answer so."""
    sync = os.fsync

    def of_files(opened: int) -> None:
        if stat.S_ISDIR(os.fstat(opened).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(opened)

    monkeypatch.setattr(os, "fsync", of_files)
    atomic.sync_folder(tmp_path)
    with atomic.staged_folder(tmp_path / "made", "making") as staged:
        (staged / "folder").mkdir()
    assert (tmp_path / "made" / "folder").is_dir()
