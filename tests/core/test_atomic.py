"""What is written takes its place only when it is on the disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from dreambooth.core.files import atomic


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
