"""The extension in a real WebUI: `python -m tests tests/host --webui DIR`. Nothing in DIR is changed but for a link.

The WebUI runs on the processor, with models and settings of its own in a temporary folder.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dreambooth.core.layout import MINIATURE, SUBJECT_PICTURES
from tests.conftest import ROOT

EXTENSION = "a dream-booth of any name"
FLAGS = [
    "--skip-prepare-environment", "--skip-install", "--skip-torch-cuda-test", "--skip-version-check",
    "--skip-python-version-check", "--no-download-sd-model", "--skip-load-model-at-start", "--no-hashing", "--api",
]  # fmt: skip
CREATE = {
    "name": "a star",
    "source": str(MINIATURE),
    "settings": {
        "concepts": [{"instance_data_dir": str(SUBJECT_PICTURES), "instance_prompt": "a photo of [filewords]"}],
        "intervals.max_train_steps": 10,
        "intervals.save_state_every": 1,
        "previews.count": 0,
        "lora.rank": 2,
    },
}
RUNS = "/dreambooth/models/a%20star/runs"


class Server:
    """A WebUI that runs, asked over HTTP."""

    def __init__(self, address: str) -> None:
        self.address = address

    def ask(self, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(self.address + path, headers={"Content-Type": "application/json"})
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(request, data, timeout=120) as answer:
            return json.loads(answer.read())

    def wait(self, until: Callable[[], Any], seconds: float = 300) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if said := until():
                    return said
            except (urllib.error.URLError, ConnectionError):
                pass  # it starts, or reloads
            time.sleep(0.5)
        raise AssertionError("it took too long")

    def run_is(self, number: int, *statuses: str) -> Any:
        def reached() -> Any:
            said = self.ask(f"{RUNS}/{number}")
            return said if said["status"] in statuses else None

        return self.wait(reached)

    def tabs(self) -> list[str]:
        found = [
            part["props"].get("elem_id") for part in self.ask("/config")["components"] if part["type"] == "tabitem"
        ]
        return [name for name in found if name]

    def reload_page(self) -> None:
        """Presses "Reload UI"."""
        config = self.ask("/config")
        button = next(p["id"] for p in config["components"] if p["props"].get("elem_id") == "settings_restart_gradio")
        press = next(
            number
            for number, handler in enumerate(config["dependencies"])
            if any((target[0] if isinstance(target, list) else target) == button for target in handler["targets"])
        )
        self.ask("/run/predict", {"fn_index": press, "data": [], "session_hash": "x"})
        time.sleep(3)
        self.wait(lambda: self.ask("/dreambooth/status"))


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest) -> Path:
    named = request.config.getoption("--webui")
    if not named:
        pytest.skip("no real WebUI was named; --webui DIR does")
    return Path(named).resolve()


@pytest.fixture(scope="module")
def python(request: pytest.FixtureRequest, folder: Path) -> str:
    inside = "venv/Scripts/python.exe" if os.name == "nt" else "venv/bin/python"
    return str(request.config.getoption("--webui-python") or folder / inside)


@pytest.fixture(scope="module")
def server(folder: Path, python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("webui")
    (base / "models" / "Lora").mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    on_processor = ["--always-cpu"] if (folder / "modules_forge").exists() else ["--use-cpu", "all", "--no-half"]
    own = ["--models-dir", base / "models", "--ui-settings-file", base / "c.json", "--ui-config-file", base / "u.json"]
    variables = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    link = folder / "extensions" / EXTENSION
    link.symlink_to(ROOT, target_is_directory=True)
    try:
        with open(base / "log", "wb") as log:
            process = subprocess.Popen(
                list(map(str, [python, "launch.py", *FLAGS, *on_processor, *own, "--port", port])),
                cwd=folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                env={**variables, "DREAMBOOTH_ENGINE_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        running = Server(f"http://127.0.0.1:{port}")
        try:
            answers = running.wait(lambda: process.poll() is not None or running.ask("/dreambooth/status"))
            assert answers is not True, (base / "log").read_text(errors="replace")[-3000:]
            yield running
        finally:
            process.kill()
            process.wait()
    finally:
        link.unlink()


def _packages(python: str) -> str:
    return subprocess.run([python, "-m", "pip", "freeze"], capture_output=True, text=True, check=True).stdout


def test_a_model_is_taught_in_a_real_webui(server: Server, python: str) -> None:
    packages = _packages(python)
    assert "tab_dreambooth" in server.tabs()
    assert server.ask("/dreambooth/models", CREATE)["about"]["family"] == "sd1"
    first = server.ask(RUNS, {})["number"]
    second = server.ask(RUNS, {"settings": {"intervals.max_train_steps": 3000}})["number"]
    written = Path(server.run_is(first, "done", "failed", "lost")["outputs"][-1])
    server.wait(lambda: written.stem in [one["name"] for one in server.ask("/sdapi/v1/loras")], seconds=10)

    def said(what: str) -> list[Any]:
        return [event for event in server.ask(f"{RUNS}/{second}/events")["events"] if event["event"] == what]

    server.wait(lambda: said("state"))
    os.kill(said("started")[0]["pid"], signal.SIGKILL)
    assert "ended without a word" in server.run_is(second, "lost")["problems"][0]
    server.ask(f"{RUNS}/{second}/resume", {})
    server.wait(lambda: said("resumed"))
    server.reload_page()
    assert server.tabs().count("tab_dreambooth") == 1
    assert server.ask(f"{RUNS}/{second}")["status"] == "running", "the run does not mind"
    server.ask(f"{RUNS}/{second}/request", {"request": "pause"})
    server.run_is(second, "paused")
    assert _packages(python) == packages
