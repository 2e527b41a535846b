"""What the system says of memory, in containers too, and whom it ends first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dreambooth.core import linux

GB = 2**30


def grouped(folder: Path, own: str, **files: object) -> tuple[Path, Path]:
    """A tree of control groups as the kernel shows it, and the file that says where a process is in it."""
    for place, content in files.items():
        path = folder / place.replace("__", "/").replace("memory_", "memory.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(content), encoding="utf-8")
    (folder / "own").write_text(own, encoding="utf-8")
    return folder, folder / "own"


def test_a_containers_limit_leaves_room(tmp_path: Path) -> None:
    stat = f"anon {GB}\nactive_file {GB}\ninactive_file {GB // 2}\n"
    groups = grouped(
        tmp_path,
        "0::/box/inner\n",
        box__memory_max=8 * GB,
        box__memory_current=5 * GB,
        box__memory_stat=stat,
        box__inner__memory_max="max",
        box__inner__memory_current=4 * GB,
        box__inner__memory_stat=stat,
    )
    assert linux.room_bytes(*groups) == 3 * GB + GB + GB // 2, "what files hold is given back"


def test_a_limit_of_older_groups_counts_though_the_path_is_the_hosts(tmp_path: Path) -> None:
    folder, own = grouped(
        tmp_path,
        "5:devices:/docker/abc\n4:memory:/docker/abc\n",
        memory__memory_stat="total_active_file 0\ntotal_inactive_file 100\n",
    )
    (folder / "memory" / "memory.limit_in_bytes").write_text(str(GB), encoding="utf-8")
    (folder / "memory" / "memory.usage_in_bytes").write_text(str(2 * GB), encoding="utf-8")
    assert linux.room_bytes(folder, own) == 0
    (folder / "memory" / "memory.usage_in_bytes").write_text(str(GB - 5), encoding="utf-8")
    assert linux.room_bytes(folder, own) == 105


def test_without_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert linux.room_bytes(tmp_path, tmp_path / "own") is None
    assert linux.room_bytes(*grouped(tmp_path, "0::/\n")) is None
    assert linux.room_bytes(*grouped(tmp_path, "garbage")) is None


def test_a_process_goes_first_and_never_back(tmp_path: Path) -> None:
    score = tmp_path / "score"
    for before, after in (("0\n", "500"), ("-200\n", "500"), ("900\n", "900\n")):
        score.write_text(before, encoding="utf-8")
        linux.go_first(score)
        assert score.read_text(encoding="utf-8") == after
    linux.go_first(tmp_path / "nowhere")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such score")
def test_the_kernel_takes_it() -> None:
    code = "from dreambooth.core import linux; linux.go_first(); print(linux._SCORE.read_text())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(said) >= 500
