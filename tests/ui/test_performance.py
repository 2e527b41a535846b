"""`performance`: which settings fit a card, with a model and without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dreambooth.core import engine_capabilities, project
from dreambooth.core.install_paths import MINIATURE
from dreambooth.core.memory import planner
from dreambooth.core.project import Folders
from dreambooth.core.settings import parse
from dreambooth.service import performance as fitting
from dreambooth.ui.command_line import main


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    code = main(["performance", "--json", *words])
    return code, json.loads(capsys.readouterr().out)


def test_without_a_model_every_family_and_method_has_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    code, said = asked(capsys, "--card", "12GB", "--general.resolution", "512")
    assert code == 0
    assert {(one["family"], one["method"]) for one in said["plans"]} == {
        (family, method) for family in ("sd1", "sd2", "sdxl") for method in ("lora", "full", "embedding")
    }
    assert all(one["card_bytes"] == 12 * 2**30 for one in said["plans"])
    assert all(one["fits"] for one in said["plans"] if one["method"] == "embedding")
    sdxl = next(one for one in said["plans"] if one["family"] == "sdxl" and one["method"] == "lora")
    _, larger = asked(capsys, "--card", "12GB", "--general.resolution", "1024")
    at_1024 = next(one for one in larger["plans"] if one["family"] == "sdxl" and one["method"] == "lora")
    assert sdxl["needed_before"]["total"] < at_1024["needed_before"]["total"], "the setting counts"


def test_with_a_model_its_own_settings_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project.create(Folders(tmp_path), "star", MINIATURE, {"batching.gradient_checkpointing": True})
    code, said = asked(capsys, "star", "--data", str(tmp_path), "--card", "4")
    assert code == 0
    assert said["fits"]
    assert said["changes"] == {"batching.gradient_checkpointing": False}
    assert said["flags"] == ["--batching.gradient_checkpointing off"]
    assert "cost a third more time" in said["why"]


def test_the_command_and_the_api_set_what_the_page_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders, own = Folders(tmp_path), {"batching.gradient_checkpointing": True, "lora.rank": 8}
    for name in ("a", "b"):
        project.create(folders, name, MINIATURE, own)
    _, plain = asked(capsys, "a", "--data", str(tmp_path), "--card", "4")
    assert not plain["applied"] and project.open_project(folders, "a").settings()["batching.gradient_checkpointing"]
    code, said = asked(capsys, "a", "--data", str(tmp_path), "--card", "4", "--apply", "--lora.rank", "4")
    assert code == 0 and said["applied"] and said["changes"] == plain["changes"]
    made = project.open_project(folders, "b")
    card = fitting.card_bytes("4", label="")
    fitting.for_model(made, lambda own: {**own, "lora.rank": 4}, card, label="", to_apply=True)
    assert project.open_project(folders, "a").settings() == made.settings()
    assert (made.settings()["batching.gradient_checkpointing"], made.settings()["lora.rank"]) == (False, 4)
    code, said = asked(capsys, "--apply")
    assert code == 2 and "--apply: it is for a model's own settings" in said["problems"][0]


def test_no_card_no_plan_for_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_capabilities, "card_bytes", lambda: 0)
    project.create(Folders(tmp_path), "star", MINIATURE)
    code, said = asked(capsys, "star", "--data", str(tmp_path))
    assert code == 2
    assert said["problems"] == ["--card: no card is known here; say how much memory it has, such as 8GB."]


def test_what_does_not_fit_is_said_with_the_mend() -> None:
    settings = parse({"general.method": "full"})
    small, large = (planner.for_family(settings, "sdxl", size * 2**30) for size in (16, 80))
    assert "--optimizer.name adamw_8bit" in planner.advice(small)
    assert planner.advice(large) == ""
