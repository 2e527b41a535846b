"""What buttons of the page do besides changing a control: the webhook's test, one step back, and what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dreambooth.core import job_list, project
from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import MINIATURE
from dreambooth.core.memory import planner
from dreambooth.core.project import Folders, Project
from dreambooth.core.settings import Settings, to_json
from dreambooth.service import notice, settings_undo
from dreambooth.ui.page import actions, jobs
from dreambooth.ui.page.plan_view import plan_view
from tests.receiver import HERE
from tests.receiver import server as server


def test_a_test_notice_says_in_a_sentence_whether_it_came(server: Any) -> None:
    address = f"http://127.0.0.1:{server.server_address[1]}/k3y"
    assert notice.send(f" {address} ", HERE) == "The test notice was sent and has come."
    assert len(server.RequestHandlerClass.got) == 1 and "this is a test" in server.RequestHandlerClass.got[0]["content"]
    server.RequestHandlerClass.answer = 404
    for wanted, allowed, said in (
        (address, HERE, "it answered 404"),
        (address, None, "it must be an https address"),
        ("https://localhost/x", None, "its own network"),
        (" ", None, "it is empty"),
    ):
        with pytest.raises(UserError) as refused:
            notice.send(wanted, allowed)
        assert said in str(refused.value) and str(refused.value).startswith("reporting.webhook_url: ")
        assert "k3y" not in str(refused.value)
    assert len(server.RequestHandlerClass.got) == 2


@pytest.fixture
def star(tmp_path: Path) -> Project:
    own = {"concepts.0.instance_prompt": "a star", "concepts.1.instance_prompt": "a heart", "lora.rank": 4}
    return project.create(Folders(tmp_path / "models"), "star", MINIATURE, own)


def test_a_removed_concept_comes_back_with_everything_else_as_it_was(star: Project) -> None:
    before = star.settings()
    with pytest.raises(UserError, match="nothing to undo"):
        settings_undo.undo(star)
    actions.remove_concept(star, 0)
    after = star.settings()
    assert after["concepts.0.instance_prompt"] == "a heart" and "concepts.1.instance_prompt" not in after
    settings_undo.undo(star)
    assert star.settings() == before
    with pytest.raises(UserError, match="nothing to undo"):
        settings_undo.undo(star)


def test_what_was_changed_since_is_not_lost_by_a_step_back(star: Project) -> None:
    actions.remove_concept(star, 1)
    actions.save(star, {"lora.rank": 8})
    with pytest.raises(UserError, match="changed since"):
        settings_undo.undo(star)
    assert star.settings()["lora.rank"] == 8


def test_an_import_can_be_taken_back(star: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "engine", lambda: Path("unused"))  # only a .toml is read with it
    before = star.settings()
    file = tmp_path / "concepts_list.json"
    file.write_text(json.dumps([{"instance_prompt": "a dog", "class_prompt": "", "instance_data_dir": str(tmp_path)}]))
    actions.import_settings(star, str(file))
    assert star.settings()["concepts.0.instance_prompt"] == "a dog"
    settings_undo.undo(star)
    assert star.settings() == before


@pytest.mark.parametrize(
    ("kind", "called"),
    [
        ("check", "check of the pictures (Concepts tab)"),
        ("class-images", "class pictures (Concepts tab)"),
        ("generate", "drawing of pictures (Generate tab)"),
        ("export", "export (Generate tab)"),
    ],
)
def test_what_is_still_at_work_is_named(star: Project, kind: str, called: str) -> None:
    job_list.create(star.errands, {"kind": kind, "model": "star"}, to_json(Settings())).request("start")
    with pytest.raises(UserError) as refused:
        jobs.make_room(star, kind)
    assert f"{called} is still at work; wait for it, or press Stop beside its progress." in str(refused.value)


def test_reasons_of_performance_call_settings_by_their_labels() -> None:
    plan = planner.Plan({}, *[None] * 3, False, ["Take a smaller general.resolution.", "lora.rank 4."])  # type: ignore[arg-type]
    assert "Take a smaller Max Resolution." in plan_view(plan, {}) and "<p>Lora Rank 4.</p>" in plan_view(plan, {})
