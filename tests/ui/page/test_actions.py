"""What buttons of the page do besides changing a control: the webhook's test, one step back, and what they say."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from dreambooth.core import job_list, project
from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import MINIATURE
from dreambooth.core.memory import planner
from dreambooth.core.project import Folders, Project
from dreambooth.core.settings import Settings, to_json
from dreambooth.host.standalone import Standalone
from dreambooth.service import api, environment, notice, settings_undo
from dreambooth.ui.page import actions, jobs
from dreambooth.ui.page.plan_view import plan_view
from dreambooth.ui.page.short_job_view import errand_view
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


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such rights")
def test_what_is_kept_for_a_step_back_is_as_private_as_the_settings(star: Project) -> None:
    """They may hold the address of a webhook, by which everybody can write to its channel."""
    address = "https://discord.com/api/webhooks/1/secret"
    project.write_settings(star, {**star.settings(), "reporting.webhook_url": address})
    actions.remove_concept(star, 0)
    assert address in (star.folder / "settings.before.json").read_text()
    for name in ("settings.json", "settings.before.json"):
        assert (star.folder / name).stat().st_mode & 0o777 == 0o600


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
    with pytest.raises(UserError) as refused, jobs.replacing_last(star, kind):
        raise AssertionError("another one was begun")
    assert f"{called} is still at work; wait for it, or press Stop beside its progress." in str(refused.value)


def test_of_two_changes_at_the_same_moment_both_are_kept(star: Project, tmp_path: Path) -> None:
    app = FastAPI()
    app.include_router(api.router(Standalone(str(tmp_path / "models"))))
    asked = TestClient(app, base_url="http://here")
    together = threading.Barrier(3)
    lost: list[int] = []

    def page(number: int) -> None:
        actions.save(star, {"lora.rank": number})

    def script(number: int) -> None:
        changes = {"intervals.num_train_epochs": number}
        told = asked.patch("/dreambooth/models/star/settings", json={"settings": changes})
        assert told.status_code == 200, told.text

    def work(change: Callable[[int], None]) -> None:
        for number in range(1, 31):
            together.wait(60)
            change(number)
            together.wait(60)

    threads = [threading.Thread(target=work, args=(change,), daemon=True) for change in (page, script)]
    for thread in threads:
        thread.start()
    for number in range(1, 31):
        together.wait(60)
        together.wait(60)
        now = star.settings()
        if (now["lora.rank"], now["intervals.num_train_epochs"]) != (number, number):
            lost.append(number)
    for thread in threads:
        thread.join()
    assert lost == []


def test_a_model_of_the_hub_is_fetched_once_however_often_create_is_pressed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody answers there
    host = Standalone(str(tmp_path / "models"))
    for _ in range(3):
        assert actions.create(host, "moon", "somebody/moon", {}) is None
    (job,) = job_list.downloads(host.folders())
    until = time.monotonic() + 120
    while job.status() != "failed":
        assert time.monotonic() < until, job.events()
        time.sleep(0.2)
    assert actions.create(host, "moon", "somebody/moon", {}) is None
    found = job_list.downloads(host.folders())
    assert len(found) == 2, "one that failed is tried again"
    while found[1].status() != "failed":
        assert time.monotonic() < until
        time.sleep(0.2)
    monkeypatch.setattr(environment, "is_current", lambda: False)
    with pytest.raises(UserError, match="The engine is not set up yet"):
        actions.create(host, "moon", "somebody/moon", {})
    assert len(job_list.downloads(host.folders())) == 2, "what cannot be started is not waited for"


def test_reasons_of_performance_call_settings_by_their_labels() -> None:
    plan = planner.Plan({}, *[None] * 3, False, ["Take a smaller general.resolution.", "lora.rank 4."])  # type: ignore[arg-type]
    assert "Take a smaller Max Resolution." in plan_view(plan, {}) and "<p>Lora Rank 4.</p>" in plan_view(plan, {})


def test_a_short_job_that_is_refused_leaves_nothing_and_the_last_of_its_kind_where_it_is(
    star: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new folder that no engine works on would be shown as one that starts, for ever."""
    host = Standalone(str(tmp_path / "models"))
    drawn = job_list.create(star.errands, {"kind": "generate", "model": "star"}, to_json(Settings()))
    drawn.report("done", pictures=[])
    with pytest.raises(UserError):
        jobs.make_class_pictures(host, star)  # the concepts have no pictures
    assert job_list.errands(star) == [drawn] and 'data-db-state="none"' in errand_view(
        host.folders(), "star", "class-images"
    )
    monkeypatch.setattr(environment, "is_current", lambda **_: False)
    for do in (
        lambda: jobs.generate(host, star, {"prompt": "a star", "base": True}),
        lambda: jobs.look_at_words(host, star, 0, "sks"),
        lambda: jobs.check(host, star, Settings()),
    ):
        with pytest.raises(UserError, match="not set up yet"):
            do()
        assert job_list.errands(star) == [drawn]


def test_a_short_job_whose_engine_is_on_its_way_is_still_at_work(star: Project) -> None:
    """Of Check the pictures and Train, pressed at once, the second would take away the folder of the first."""
    starting = job_list.create(star.errands, {"kind": "check", "model": "star"}, to_json(Settings()))
    with pytest.raises(UserError, match="is still at work"), jobs.replacing_last(star, "check"):
        raise AssertionError("another one was begun")
    content = starting.read()
    (starting.folder / "job.json").write_text(json.dumps({**content, "created": time.time() - 3600}))
    with jobs.replacing_last(star, "check"):
        pass
    assert job_list.errands(star) == [], "one that never began is in nobody's way"


def test_a_run_has_the_settings_that_were_checked(
    star: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking at many pictures takes minutes, in which the page goes on saving what is changed there."""
    host = Standalone(str(tmp_path / "models"))
    monkeypatch.setattr(jobs.preflight, "check_new", lambda *_: None)  # the concepts have no pictures
    monkeypatch.setattr(jobs.queue, "submit", lambda job: None)

    def check(*_: object) -> list[str]:
        actions.save(star, {"lora.rank": 64})
        return []

    monkeypatch.setattr(jobs, "check", check)
    assert jobs.train(host, star).settings()["lora.rank"] == 4


def test_a_run_that_another_window_began_during_the_check_stays_alone(
    star: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Standalone(str(tmp_path / "models"))
    monkeypatch.setattr(jobs.preflight, "check_new", lambda *_: None)  # the concepts have no pictures
    monkeypatch.setattr(jobs.queue, "submit", lambda job: job.request("start"))
    monkeypatch.setattr(jobs, "check", lambda *_: [])
    others = jobs.train(host, star)
    others.clear_request("start")

    def check(*_: object) -> list[str]:
        others.request("start")
        return []

    monkeypatch.setattr(jobs, "check", check)
    with pytest.raises(UserError, match=f"{others.name} is queued"):
        jobs.train(host, star)
    assert job_list.runs(star) == [others]
