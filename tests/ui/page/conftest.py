"""The page for real: its own web server, the engine's own Python, and a browser without a window.

`python -m tests` runs these with the page's environment. DREAMBOOTH_PAGE_PYTHON names the Python of another environment
whose gradio is to be driven; DREAMBOOTH_CHROMIUM names the browser.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dreambooth.core.install_paths import MINIATURE
from dreambooth.service import environment

ROOT = Path(__file__).resolve().parents[3]
START_SECONDS = 120


def chromium() -> str | None:
    named = os.environ.get("DREAMBOOTH_CHROMIUM")
    return named or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Server:
    """The page's web server on a models folder; it can be ended and started again at the same address."""

    def __init__(self, data: Path) -> None:
        self.data = data
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        python = os.environ.get("DREAMBOOTH_PAGE_PYTHON", sys.executable)
        command = [python, "-m", "dreambooth.ui.page.alone", "--data", str(self.data), "--port", str(self.port)]
        variables = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "DREAMBOOTH_ENGINE_PYTHON": str(environment.python()),
            "GRADIO_ANALYTICS_ENABLED": "False",
            "OMP_NUM_THREADS": "1",
        }
        self.process = subprocess.Popen(command, cwd=ROOT, env=variables)
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            try:
                urllib.request.urlopen(f"{self.address}/dreambooth/status", timeout=5).read()
                return
            except OSError:
                assert self.process.poll() is None, "the page's server ended"
                time.sleep(0.3)
        raise AssertionError("the page's server does not answer")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def models_folder(place: Path) -> Path:
    """A models folder with the miniature among its checkpoints."""
    folder = place / "models"
    (folder / "Stable-diffusion").mkdir(parents=True)
    shutil.copyfile(MINIATURE, folder / "Stable-diffusion" / "miniature.safetensors")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models_folder(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def server(data: Path) -> Iterator[Server]:
    running = Server(data)
    yield running
    running.end()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if not chromium():
        pytest.skip("there is no Chromium; install it or name it in DREAMBOOTH_CHROMIUM")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield opened
        opened.close()
