from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from tests.engine import tiny


@pytest.fixture(autouse=True)
def fresh_accelerator() -> None:
    """Runs have a process each, and with it their own precision; tests share one process."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def base(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A very small checkpoint of each family."""
    return tiny.write_original(tmp_path_factory.mktemp("base") / "base.safetensors", family)


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
