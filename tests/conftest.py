"""What the tests share. Pictures, models and damaged files are made here, never fetched."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import thorough

try:
    from hypothesis import HealthCheck, settings
except ImportError:  # the page's environment does without
    pass
else:  # a busy machine is no fault of what is tested
    settings.register_profile("patient", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("patient")

ROOT = Path(__file__).resolve().parents[1]

Run = Callable[..., "Said"]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    thorough.mark(items)


def pytest_collection_finish() -> None:
    """What the tests import is not looked through for garbage any more, as in an engine's process: it is large, and a
    tenth of the tests' time went into it."""
    gc.collect()
    gc.freeze()


def _can_link() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        try:
            (Path(folder) / "link").symlink_to(folder)
        except OSError:
            return False
        return (Path(folder) / "link").is_symlink()


CAN_LINK = _can_link()
needs_links = pytest.mark.skipif(not CAN_LINK, reason="nobody may make links here, as on many a Windows")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--webui", metavar="DIR", help="a WebUI's folder (AUTOMATIC1111, Forge) to try the extension in")
    parser.addoption(
        "--webui-checkpoint", metavar="FILE", help="what is taught there (default: one with random weights)"
    )
    parser.addoption("--webui-python", metavar="FILE", help="its Python (default: that of the venv in its folder)")


class Said:
    """What a command said: its exit code, its JSON answer, its errors."""

    def __init__(self, result: subprocess.CompletedProcess[str]) -> None:
        self.code = result.returncode
        self.errors = result.stderr
        self.answer: dict[str, Any] = json.loads(result.stdout) if result.stdout.strip().startswith("{") else {}


@pytest.fixture(scope="session")
def dreambooth() -> Run:
    """Runs `python -m dreambooth` for real, with the engine's environment that runs the tests."""

    def run(*arguments: object, cwd: Path = ROOT) -> Said:
        variables = {**os.environ, "DREAMBOOTH_ENGINE_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "dreambooth", *map(str, arguments), "--json"]
        return Said(subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=variables, timeout=900))

    return run


def write_safetensors(
    path: Path, tensors: dict[str, tuple[str, list[int], int]], metadata: dict[str, str] | None = None
) -> Path:
    """A .safetensors file of zeros by hand: {name: (dtype, shape, bytes)}."""
    header: dict[str, Any] = {"__metadata__": metadata or {}}
    offset = 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(offset))
    return path
