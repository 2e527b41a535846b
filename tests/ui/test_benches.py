"""What each measurement can be asked, and the sentence about what it cannot."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dreambooth.core.errors import UserError
from dreambooth.core.memory import footprint_table
from dreambooth.service import environment
from dreambooth.ui import benches, command_line
from tests.conftest import Run


def asked(*flags: str) -> dict[str, Any]:
    return benches._fields(command_line._parser()[0].parse_args(["bench", *flags]))


def test_each_flag_belongs_to_some_parts() -> None:
    assert asked("plans", "--card", "8GB", "--method", "lora", "--minutes", "9") == {
        "large": False,
        "card_bytes": 8 * 2**30,
        "method": "lora",
        "minutes": 9.0,
    }
    assert asked("card", "--only", "steps", "memory")["only"] == ["steps", "memory"]
    assert Path(asked("card", "--work", "x")["work"]).name == "x"
    race = asked("training", "--peer", "a", "--peer", "b", "--family", "sdxl", "--steps", "30", "--batch", "2")
    assert [Path(one).name for one in race["peer"]] == ["a", "b"]
    assert (race["family"], race["steps"], race["batch"]) == ("sdxl", 30, 2)
    for flags, said in (
        (("card", "--large"), "--large: it belongs to bench training and bench drawing"),
        (("training", "--minutes", "9"), "--minutes: it belongs to bench plans and bench card"),
        (("plans", "--minutes", "0"), "--minutes: it must be more than 0"),
        (("training", "--batch", "0"), "--batch: it must be at least 1"),
        (("drawing", "--peer-python", "x"), "--peer-python: it belongs to bench training and bench card"),
        (("drawing", "--steps", "9"), "--steps: it belongs to bench training"),
        (("plans", "--card", "huge"), "--card: 'huge' is no size of a card"),
    ):
        with pytest.raises(UserError, match=said):
            asked(*flags)


@pytest.mark.skipif(os.name == "nt", reason="its environments hold no links")
def test_a_peers_python_is_the_link_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is how a virtual environment is entered; a command is looked up as a shell does."""
    link = tmp_path / "bin" / "python"
    link.parent.mkdir()
    link.symlink_to(sys.executable)
    monkeypatch.chdir(tmp_path)
    assert asked("training", "--peer-python", "bin/python")["peer_python"] == str(link)
    monkeypatch.setenv("PATH", str(link.parent))
    assert asked("training", "--peer-python", "python")["peer_python"] == str(link)
    assert asked("training", "--peer-python", "nothing")["peer_python"] == str(tmp_path / "nothing")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a bench says that is not begun: why it is refused, or that it would set the engine up."""

    def set_up(progress: object) -> Path:
        raise UserError("The engine would be set up now.")

    monkeypatch.setattr(environment, "ensure", set_up)

    def said(*flags: object) -> str:
        assert command_line.main(["bench", *map(str, flags)]) == 2
        return capsys.readouterr().err.strip()

    return said


def test_nothing_that_is_there_is_written_over(bench: Callable[..., str], tmp_path: Path) -> None:
    mine, table = tmp_path / "mine.json", tmp_path / "table.json"
    mine.write_text('{"made_by": "me"}')
    (tmp_path / "words.txt").write_text("no JSON")
    shutil.copy(footprint_table.TABLE, table)
    assert "mine.json is no table that bench memory has written" in bench("memory", "--out", mine)
    assert "words.txt is no table that bench memory" in bench("memory", "--out", tmp_path / "words.txt")
    assert f"--out: {tmp_path} is a folder; name a .json file." in bench("memory", "--out", tmp_path)
    assert bench("memory", "--out", table) == "The engine would be set up now."
    assert bench("memory", "--out", tmp_path / "new.json") == "The engine would be set up now."
    assert "does not exist yet" in bench("files", "--out", tmp_path)
    assert f"--out: {mine} is a file" in bench("sweep", "--out", mine)
    assert f"--out: {mine} is a file" in bench("training", "--out", mine / "under" / "it")
    assert f"--out: {mine} is a file" in bench("memory", "--out", mine / "table.json")
    assert mine.read_text() == '{"made_by": "me"}'


@pytest.mark.skipif(not os.access("/", os.W_OK), reason="it is read-only")
def test_a_disk_of_its_own_can_be_named(dreambooth: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    said = dreambooth("bench", "plans", "--out", "/")
    assert said.code == 2 and "it needs an NVIDIA card" in said.errors and "Traceback" not in said.errors


def test_what_is_no_place(bench: Callable[..., str]) -> None:
    assert "--out: there is no home of '~nosuchuser'" in bench("sweep", "--out", "~nosuchuser/x")
    assert "--out: it is empty" in bench("sweep", "--out", "")
