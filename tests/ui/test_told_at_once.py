"""What is told at once: bad command lines, files and places, before an engine is set up; and how a command ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dreambooth import __version__
from dreambooth.core import project, settings
from dreambooth.core.install_paths import MINIATURE, SUBJECT_PICTURES
from dreambooth.core.project import Folders
from dreambooth.service import environment
from dreambooth.ui import command_line
from tests.conftest import ROOT, needs_links


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A models folder with a model."""
    project.create(Folders(tmp_path / "models folder"), "star", MINIATURE)
    return tmp_path / "models folder"


@pytest.fixture
def told(data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command is refused with, before an engine is set up."""
    monkeypatch.setattr(environment, "ensure", lambda progress: pytest.fail("it would be set up"))

    def said(*line: object, code: int = 2) -> str:
        where = [] if "--data" in line else ["--data", str(data)]
        assert command_line.main([*map(str, line), *where]) == code
        found = capsys.readouterr()
        return found.err if code else found.out

    return said


def test_a_flag_without_its_value(told: Callable[..., str]) -> None:
    said = told("set", "star", "--concepts.0.instance_prompt", "--lora.rank", "4", "--lora.kind")
    assert said.splitlines() == [
        "--concepts.0.instance_prompt: its value is missing.",
        "--lora.kind: its value is missing.",
    ]
    assert "saving.half_model" in told("set", "star", "--saving.half_model", "--saving.half_model", "off", code=0)
    assert "tuning.use_ema" in told("set", "star", "--tuning.use_ema", code=0)
    assert "rank: there is no such setting" in told("set", "star", "--rank")


@pytest.mark.parametrize("row", ["²", "00", "1" * 5000])
def test_a_row_is_a_plain_number(told: Callable[..., str], row: str) -> None:
    said = told("set", "star", f"--concepts.{row}.instance_prompt", "x")
    assert f"concepts.{row}.instance_prompt: there is no such setting. Did you mean concepts.0." in said


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("s.json", b"", "the settings file is empty"),
        ("s.toml", b"[general]", "are taken by import"),
        ("s.json", '{"lora.rank": 4}'.encode("utf-16"), "is no text in UTF-8"),
        ("s.json", b'{"a":' * 100_000, "nested too deeply"),
        ("s.json", b'{"a":' * 50 + b"1" + b"}" * 50, "nested too deeply"),
        ("s.json", b'{"lora": {"rank": 4, "rank": 8}}', "lora.rank: it is there twice"),
        ("s.json", b'{"lora": {"rank": 4}, "lora": {"rank": 8}}', "lora.rank: it is there twice"),
        ("s.json", b'{"lora.rank": 4, "lora": {"rank": 8}}', "lora.rank: it is there twice"),
    ],
)
def test_settings_files_that_will_not_do(
    told: Callable[..., str], tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert said in told("set", "star", "--settings", tmp_path / name)


def test_what_a_settings_file_says_is_all_taken(told: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_text('\ufeff{"lora": {"rank": 4}, "lora": {"alpha": 2}}', encoding="utf-8")
    said = told("set", "star", "--settings", file, code=0)
    assert "lora.rank" in said and "lora.alpha" in said


def test_concepts_of_a_settings_file_take_the_place_of_the_models(
    told: Callable[..., str], data: Path, tmp_path: Path
) -> None:
    told("set", "star", "--concepts.0.class_prompt", "a star", "--concepts.1.class_prompt", "a dog", code=0)
    file = tmp_path / "settings.json"
    file.write_text('{"concepts": [{"instance_prompt": "a photo of sks"}]}')
    told("set", "star", "--settings", file, code=0)
    (one,) = settings.parse(project.open_project(Folders(data), "star").settings()).concepts
    assert (one.instance_prompt, one.class_prompt) == ("a photo of sks", "")


def test_places_that_are_none(told: Callable[..., str], tmp_path: Path) -> None:
    home = "~nosuchuser/x"
    for line, flag in (
        (("inspect", home), "FILE"),
        (("create", "x", "--source", home), "--source"),
        (("set", "star", "--settings", home), "--settings"),
        (("check", "star", "--sheet", home), "--sheet"),
        (("set", "star", "--concepts.0.instance_data_dir", home), "concepts.0.instance_data_dir"),
        (("import", "star", home), "FILE"),
        (("sheet", "star", "--prompt", "x", "--weights", home), "--weights"),
        (("demo", "--out", home), "--out"),
        (("models", "--data", home), "--data"),
    ):
        assert told(*line).startswith(f"{flag}: there is no home of '~nosuchuser'"), line
    for line, flag in ((("models", "--data", ""), "--data"), (("set", "star", "--settings", ""), "--settings")):
        assert told(*line).startswith(f"{flag}: it is empty"), line


@needs_links
def test_a_link_that_leads_back_to_itself(told: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to(tmp_path / "two")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    said = told("inspect", tmp_path / "one" / "x.safetensors")
    assert "a link that leads back to itself" in said or "no such file" in said  # as Python has it from 3.13


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
def test_a_pipe_is_not_waited_for(told: Callable[..., str], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.safetensors")
    assert "this is no file that can be read from any place" in told("inspect", tmp_path / "x.safetensors")


def test_a_models_folder_that_is_not_there(told: Callable[..., str], data: Path, tmp_path: Path) -> None:
    for command in ("models", "runs"):
        assert told(command, "--data", tmp_path / "typo").startswith(f"--data: there is no folder {tmp_path / 'typo'}")
    assert str(MINIATURE) in told("models", "--data", MINIATURE)
    assert told("runs", code=0) == f"There are no runs yet in {data / 'dreambooth'}.\n"
    (tmp_path / "empty").mkdir()
    said = told("models", "--data", tmp_path / "empty", code=0)
    assert said == f"There are no models yet in {tmp_path / 'empty' / 'dreambooth'}; create makes one.\n"


@pytest.mark.parametrize("size", ["13", "56", "100"])
def test_a_size_that_no_model_has(told: Callable[..., str], size: str) -> None:
    assert "resolution: it must be a multiple of 8" in told("create", "x", "--source", MINIATURE, "--resolution", size)


def test_a_class_folder_that_is_a_file(told: Callable[..., str]) -> None:
    flags = ["--concepts.0.instance_data_dir", SUBJECT_PICTURES, "--concepts.0.instance_prompt", "x"]
    flags += ["--concepts.0.class_mode", "folder", "--concepts.0.class_data_dir", MINIATURE]
    said = told("train", "star", *flags, "--concepts.0.class_prompt", "y")
    assert "concepts.0.class_data_dir: " in said and "is a file" in said


def test_a_file_is_looked_at_before_an_engine_is_set_up(told: Callable[..., str], tmp_path: Path) -> None:
    assert "there is no such file" in told("import", "star", tmp_path / "gone.json")
    (tmp_path / "x.json").write_text("[" * 100_000)
    assert "the file is not JSON" in told("import", "star", tmp_path / "x.json")


def test_flags_before_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["--data", "x", "models"]) == 2
    assert capsys.readouterr().err == "--data: put it behind the command, as in models --data\n"
    with pytest.raises(SystemExit) as ended:
        command_line.main(["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"{__version__}\n")


def test_json_is_json_whatever_the_terminal_can_show(data: Path) -> None:
    variables = {**os.environ, "PYTHONIOENCODING": "ascii"}
    for line in (["set", "star", "--concepts.0.class_prompt", "字 \U0001f415"], ["models", "--data", "字"]):
        command = [sys.executable, "-m", "dreambooth", *line, "--json", *([] if "--data" in line else ["--data", data])]
        said = subprocess.run(command, cwd=ROOT, capture_output=True, env=variables).stdout
        assert "字" in json.dumps(json.loads(said), ensure_ascii=False)


@pytest.mark.skipif(os.name == "nt", reason="it is a shell's way to close them")
def test_nobody_need_listen(data: Path) -> None:
    for closed in (">&-", "2>&-", ">&- 2>&-"):
        command = f"exec '{sys.executable}' -m dreambooth models --data '{data}' {closed}"
        done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_names_of_many_bytes(told: Callable[..., str]) -> None:
    assert "take 240 bytes of a file's name" in told("create", "字" * 80, "--source", MINIATURE)
    assert "take 183 bytes of a file's name" in told("set", "star", "--saving.custom_model_name", "字" * 61)
    assert "saving.custom_model_name" in told("set", "star", "--saving.custom_model_name", "字" * 60, code=0)


def test_targets_that_cannot_be_written(told: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for command, flag, place in (
        (["generate", "--prompt", "x"], "--out", file),
        (["sheet", "--prompt", "x", "--base"], "--out", file / "under" / "it"),
        (["export", "--base"], "--to", file / "x.safetensors"),
        (["export", "--base"], "--to", file / "under" / "it"),
    ):
        said = told(command[0], "star", *command[1:], flag, place)
        assert said.startswith(f"{flag}: ") and f"({file} is a file)" in said


def test_a_result_that_cannot_be_written(told: Callable[..., str], data: Path) -> None:
    (data / "Lora").write_text("no folder")
    flags = ["--concepts.0.instance_data_dir", SUBJECT_PICTURES, "--concepts.0.instance_prompt", "x"]
    said = told("train", "star", *flags)
    assert f"{data / 'Lora'}: the result cannot be written there ({data / 'Lora'} is a file)" in said


@pytest.fixture
def ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has the engine be a script that tells of some events at once."""
    if os.name == "nt":
        pytest.skip("the stand-in for an engine is a shell's script")

    def tells(*events: dict[str, Any]) -> None:
        engine, started = tmp_path / "engine", '{"event": "started", "time": 0, "pid": \'$$\'}'
        told = "".join(f"{json.dumps(event)}\n" for event in events)
        engine.write_text(f"#!/bin/sh\n(echo '{started}'; cat) >> \"$3/events.jsonl\" <<'END'\n{told}END\n")
        engine.chmod(0o755)
        monkeypatch.setenv("DREAMBOOTH_ENGINE_PYTHON", str(engine))

    return tells


SAVED = {"event": "saved", "kind": "lora", "path": "/x", "bytes": 1, "images": 1}


@pytest.mark.parametrize(
    ("command", "events", "code"),
    [
        ("train", [SAVED, {"event": "done"}], 0),
        ("train", [SAVED, {"event": "stopped"}], 0),
        ("train", [{"event": "stopped"}], 3),
        ("train", [SAVED, {"event": "paused"}], 3),
        ("train", [SAVED, {"event": "stopped", "discarded": True}], 3),
        ("class-images", [{"event": "stopped"}], 3),
        ("class-images", [{"event": "paused"}], 3),
    ],
)
def test_it_ends_with_0_only_where_it_did_what_it_was_asked(
    data: Path, ends: Callable[..., None], command: str, events: list[dict[str, Any]], code: int
) -> None:
    ends(*events)
    flags = ["--concepts.0.instance_data_dir", str(SUBJECT_PICTURES), "--concepts.0.instance_prompt", "x"]
    assert command_line.main([command, "star", "--data", str(data), *flags]) == code


def test_a_demo_without_a_result_says_why(
    tmp_path: Path, ends: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    ends({"event": "warning", "text": "The disk is full."}, {"event": "paused"})
    assert command_line.main(["demo", "--out", str(tmp_path / "demo")]) == 2
    said = capsys.readouterr().err
    assert "the demo needs its results, and there is none (The disk is full.); start it anew." in said
