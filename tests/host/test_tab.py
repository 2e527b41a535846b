"""How the extension enters a WebUI: its flags, its tab, its API, and what it says when something is wrong."""

from __future__ import annotations

import argparse
import html
import importlib.util
import shutil
import sys
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.testclient import TestClient

from dreambooth.core.errors import UserError
from dreambooth.service import installation, queue
from tests.host.conftest import ROOT, StandIn


@pytest.fixture(autouse=True)
def _no_queue(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    watched: list[Any] = []
    monkeypatch.setattr(queue, "watch", watched.append)
    return watched


@pytest.fixture
def _no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dreambooth.ui.page", None)


def shown(webui: StandIn) -> str:
    (tab,) = webui.callbacks["ui_tabs"]
    ((blocks, title, elem_id),) = tab()
    assert (title, elem_id) == ("Dreambooth", "dreambooth")
    return html.unescape(" ".join(str(component.value) for component in blocks.components))


def test_the_page_is_the_tab(webui: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    page: Any = ModuleType("dreambooth.ui.page")
    page.build = lambda host: ("the page of", host)
    monkeypatch.setitem(sys.modules, "dreambooth.ui.page", page)
    script = webui.load_script()
    assert webui.callbacks["ui_tabs"][0]() == [(("the page of", script.HOST), "Dreambooth", "dreambooth")]


@pytest.mark.usefixtures("_no_page")
def test_without_a_page_the_tab_says_why_and_repairs_the_engine(
    webui: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun: list[bool] = []
    monkeypatch.setattr(installation, "state", lambda: {"ready": False, "working": False, "problem": "No <room>."})
    monkeypatch.setattr(installation, "begin", lambda: begun.append(True))
    webui.load_script()
    assert "The page cannot be shown: ModuleNotFoundError" in shown(webui)
    ((blocks, _, _),) = webui.callbacks["ui_tabs"][0]()
    assert "The engine is not ready. No &lt;room&gt;." in blocks.components[1].value
    (repair,) = [one for one in blocks.components if one.elem_id == "dreambooth_repair"]
    assert "being set up" in repair.handlers[0]() and begun


@pytest.mark.usefixtures("_no_page")
def test_a_folder_that_may_not_be_written_to_is_a_sentence_in_the_tab(
    webui: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "in the way").touch()
    monkeypatch.setattr(installation, "NOTE", tmp_path / "in the way" / "note.json")
    webui.load_script()
    ((blocks, _, _),) = webui.callbacks["ui_tabs"][0]()
    (repair,) = [one for one in blocks.components if one.elem_id == "dreambooth_repair"]
    assert "The engine cannot be set up (" in repair.handlers[0]()


@pytest.mark.usefixtures("_no_page")
@pytest.mark.parametrize("damage", ["no locks", "half an update"])
def test_there_is_a_tab_where_nothing_can_be_told_of_the_engine_either(
    webui: StandIn, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    def refuse() -> dict[str, Any]:
        raise UserError("/x/.engine.lock: files cannot be locked here (No locks available); use another disk.")

    script = webui.load_script()
    if damage == "no locks":
        monkeypatch.setattr(installation, "state", refuse)
        told = "<p>How the engine is cannot be told. /x/.engine.lock: files cannot be locked here"
    else:
        monkeypatch.setitem(sys.modules, "dreambooth.service.installation", None)
        monkeypatch.delattr(sys.modules["dreambooth.service"], "installation")
        told = "<p>How the engine is cannot be told. ModuleNotFoundError"
    assert told in shown(webui)
    if damage == "half an update":
        assert "ModuleNotFoundError" in script.repair()


def test_what_a_person_can_mend_is_told_as_a_sentence(webui: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise UserError("/x: it may not be written to; mend that.")

    monkeypatch.setattr("dreambooth.core.device.is_busy", refuse)
    webui.module("devices").device = SimpleNamespace(type="cuda")
    webui.load_script()
    assert "Dreambooth cannot start: /x: it may not be written to; mend that." in shown(webui)
    monkeypatch.setattr("dreambooth.service.environment.is_current", refuse)
    assert (
        installation.on_start()
        == "Dreambooth: the engine could not be set up. /x: it may not be written to; mend that."
    )


def test_another_package_of_our_name_is_said_in_the_tab(
    webui: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    theirs = ModuleType("dreambooth")
    theirs.__file__ = str(tmp_path / "sd_dreambooth_extension" / "dreambooth" / "__init__.py")
    monkeypatch.setitem(sys.modules, "dreambooth", theirs)
    webui.load_script()
    assert "Another extension's package named" in shown(webui) and "sd_dreambooth_extension" in shown(webui)
    assert not webui.callbacks["app_started"] and not webui.callbacks["ui_settings"]


def test_a_python_that_is_too_old_is_said_in_the_tab(webui: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(sys, "version_info", (3, 9, 18))
        webui.load_script()
    assert "This WebUI's Python is 3.9, but Dreambooth needs 3.10 or newer." in shown(webui)


def test_the_api_is_there_and_a_reload_registers_it_anew_once(
    webui: StandIn, _no_queue: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    page: Any = ModuleType("dreambooth.ui.page")  # the real one needs all of gradio
    page.routes = SimpleNamespace(router=lambda host: APIRouter())
    monkeypatch.setitem(sys.modules, "dreambooth.ui.page", page)
    for _ in range(2):  # "Reload UI" makes a new app and runs the script anew
        webui.load_script()
        app = FastAPI()
        for started in webui.callbacks["app_started"] * 2:  # a host that calls twice
            started(None, app)
        said = TestClient(app).get("/dreambooth/status").json()
        assert said["host"] == "AUTOMATIC1111" and said["version"] == "v1.10.1"
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # FastAPI warns of what is registered twice
            routes = [path for path in app.openapi()["paths"] if path.startswith("/dreambooth/")]
        assert len(routes) > 20
    assert len(_no_queue) == 2


def test_the_settings_section(webui: StandIn) -> None:
    webui.load_script()
    (add,) = webui.callbacks["ui_settings"]
    add()
    options = webui.module("shared").opts.labels
    assert options.keys() == {"dreambooth_lend_gpu", "dreambooth_alone_minutes"}
    assert {info.section for info in options.values()} == {("dreambooth", "Dreambooth")}


def test_the_script_leaves_the_search_path_as_it_was(webui: StandIn) -> None:
    before = list(sys.path)
    webui.load_script()
    assert sys.path == before


def _preload(folder: Path = ROOT) -> Any:
    spec = importlib.util.spec_from_file_location("preload.py", folder / "preload.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_flags() -> None:
    parser = argparse.ArgumentParser()
    before = set(sys.modules)
    _preload().preload(parser)
    assert set(sys.modules) == before
    said = parser.parse_args(["--dreambooth-models-path", "/a", "--lora-models-path", "/b"])
    assert (said.dreambooth_models_path, said.lora_models_path) == ("/a", "/b")
    assert parser.parse_args([]) == argparse.Namespace(**SimpleNamespace(
        dreambooth_models_path=None, lora_models_path=None
    ).__dict__)  # fmt: skip


@pytest.mark.parametrize("ours", ["a-dreambooth", "z-dreambooth"])
def test_an_older_extension_with_the_same_flags_keeps_its_others(ours: str, tmp_path: Path) -> None:
    """As long as both are there; the WebUI would not start with a flag that is missing."""
    older = tmp_path / "sd_dreambooth_extension" / "preload.py"
    flags = ("--dreambooth-models-path", "--lora-models-path", "--ckptfix")
    older.parent.mkdir()
    older.write_text("def preload(parser):\n" + "".join(f"    parser.add_argument({flag!r})\n" for flag in flags))
    (tmp_path / ours).mkdir()
    shutil.copy(ROOT / "preload.py", tmp_path / ours)
    parser = argparse.ArgumentParser()
    for folder in sorted(tmp_path.iterdir()):
        _preload(folder).preload(parser)
    said = parser.parse_args(["--dreambooth-models-path", "/a", "--lora-models-path", "/b", "--ckptfix", "1"])
    assert (said.dreambooth_models_path, said.lora_models_path, said.ckptfix) == ("/a", "/b", "1")
