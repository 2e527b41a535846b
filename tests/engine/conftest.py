from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState


@pytest.fixture(autouse=True)
def fresh_accelerator() -> None:
    """Runs have a process each, and with it their own precision; tests share one process."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte."""
    if os.name == "nt":
        pytest.skip("Windows has no small disks to mount")
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk takes rights that these tests do not have")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)  # a model that was mapped may be held a little longer
