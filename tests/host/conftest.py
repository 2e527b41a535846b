"""A WebUI around the extension: the stand-in, as if the extension lay in its folder and had been started by it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import dreambooth.host

STANDIN = Path(__file__).with_name("standin")
ROOT = Path(__file__).resolve().parents[2]
THEIRS = ("modules", "gradio")
# They hold the modules of the WebUI that they met first.
OURS = ("dreambooth.host.webui", "dreambooth.host.describing", "dreambooth.host.drawing", "dreambooth.host.lending")


class StandIn:
    """The WebUI: its modules, and how it loads our script."""

    def __init__(self, data: Path) -> None:
        import modules.paths
        import modules.script_callbacks

        self.models = data / "models"
        for name in ("Stable-diffusion", "Lora"):
            (self.models / name).mkdir(parents=True)
        modules.paths.models_path = str(self.models)
        self.callbacks = modules.script_callbacks.registered

    def module(self, name: str) -> Any:
        return sys.modules[f"modules.{name}"]

    def load_script(self) -> ModuleType:
        """Runs our script as a WebUI does at its start, and anew at "Reload UI"."""
        for callbacks in self.callbacks.values():
            callbacks.clear()
        spec = importlib.util.spec_from_file_location("dreambooth_tab.py", ROOT / "scripts" / "dreambooth_tab.py")
        assert spec and spec.loader
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
        return script


@pytest.fixture
def webui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A WebUI that has just been started, with nothing of ours loaded yet."""
    hidden = {name: module for name, module in sys.modules.items() if name.split(".")[0] in THEIRS}
    _forget([*hidden, *OURS])
    monkeypatch.syspath_prepend(str(STANDIN))
    from modules import call_queue, devices, progress, sd_models, shared, ui_extra_networks  # noqa: F401

    yield StandIn(tmp_path)
    _forget([*(one for one in sys.modules if one.split(".")[0] in THEIRS), *OURS])
    sys.modules.update(hidden)


def _forget(names: list[str]) -> None:
    for name in names:
        sys.modules.pop(name, None)
    for name in OURS:
        vars(dreambooth.host).pop(name.rpartition(".")[2], None)
