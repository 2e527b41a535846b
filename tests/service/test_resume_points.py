"""Going on with a run: from an earlier state, where the later ones go to the trash, and with the model's settings."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from dreambooth.core import project, run
from dreambooth.core.errors import UserError
from dreambooth.core.layout import MINIATURE
from dreambooth.core.project import Folders
from dreambooth.core.schema import HIDDEN
from dreambooth.core.settings import Settings
from dreambooth.host.standalone import Standalone
from dreambooth.service import api, going_on


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    made = Folders(tmp_path / "models")
    project.create(made, "star", MINIATURE)
    return made


def paused(folders: Folders, *more: str) -> run.Job:
    job = run.new_run(folders, project.open_project(folders, "star"), Settings())
    for step in (10, 20, 30):
        (job.state / f"{step:09}").mkdir(parents=True)
    lines = [{"event": "started"}, *({"event": one} for one in more), {"event": "paused"}]
    (job.folder / "events.jsonl").write_text("".join(json.dumps({**line, "time": 0}) + "\n" for line in lines))
    return job


def test_later_states_are_moved_to_the_trash(folders: Folders) -> None:
    job = paused(folders)
    assert going_on.states(job) == [10, 20, 30]
    going_on.go_back(folders, job, 10)
    assert going_on.states(job) == [10]
    assert sorted(path.name for path in folders.trash.iterdir()) == [
        "star run 1 state 000000020",
        "star run 1 state 000000030",
    ]
    (job.state / "000000020").mkdir()
    going_on.go_back(folders, job, 10)  # once more: nothing in the trash is overwritten
    assert len(list(folders.trash.iterdir())) == 3


def test_the_newest_state_moves_nothing(folders: Folders) -> None:
    job = paused(folders)
    going_on.go_back(folders, job, 30)
    assert going_on.states(job) == [10, 20, 30]


def test_what_cannot_be_is_refused_and_moves_nothing(folders: Folders) -> None:
    job = paused(folders)
    with pytest.raises(UserError, match=r"no state after step 15 \(there: 10, 20, 30\)"):
        going_on.go_back(folders, job, 15)
    written = paused(folders, "result")
    with pytest.raises(UserError, match="written its result already"):
        going_on.go_back(folders, written, 10)
    assert going_on.states(job) == going_on.states(written) == [10, 20, 30]


WEBHOOK = "reporting.webhook_url"


def test_the_models_settings_are_taken_where_they_may_change(folders: Folders) -> None:
    job, opened = paused(folders), project.open_project(folders, "star")
    assert going_on.prospect(job, opened) == {"differences": [], "problems": []}
    secret = {WEBHOOK: "https://discord.com/api/webhooks/1/secret"}
    project.write_settings(opened, {"lora.rank": 4, "intervals.num_train_epochs": 7, **secret})
    prospect = going_on.prospect(job, opened)
    assert {one["key"]: bool(one["why_not"]) for one in prospect["differences"]} == {
        "intervals.num_train_epochs": False,
        "lora.rank": True,
        WEBHOOK: False,
    }
    assert [one["given"] for one in prospect["differences"] if one["key"] == WEBHOOK] == [HIDDEN]
    assert "secret" not in json.dumps(prospect)
    going_on.take_model_settings(job, opened)
    assert job.changes() == {"intervals.num_train_epochs": 7, **secret}
    assert [one.key for one in going_on.differences(job, opened)] == ["lora.rank"]


def test_what_stands_in_the_way_of_the_models_settings_is_said_and_nothing_taken(folders: Folders) -> None:
    job, opened = paused(folders), project.open_project(folders, "star")
    rests = {"intervals.epoch_pause_frequency": 2, "intervals.epoch_pause_time": 5}
    prodigy = {"optimizer.name": "prodigy", "learning.lora_learning_rate": 1.0}
    project.write_settings(opened, {**rests, **prodigy})  # the rate may change, the optimizer that asks for it may not
    assert going_on.prospect(job, opened)["problems"] == []
    project.write_settings(opened, rests)
    written = paused(folders, "result")
    assert "written its result already" in going_on.prospect(written, opened)["problems"][0]
    with pytest.raises(UserError, match="written its result already"):
        going_on.take_model_settings(written, opened)
    assert written.changes() == {}


def test_going_on_with_the_models_settings_over_the_api(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DREAMBOOTH_ENGINE_PYTHON", sys.executable)  # nothing is started here
    job, opened = paused(folders), project.open_project(folders, "star")
    project.write_settings(opened, {"lora.rank": 4, "intervals.num_train_epochs": 7})
    app = FastAPI()
    app.include_router(api.router(Standalone(str(folders.models))))
    asked, place = TestClient(app, base_url="http://here"), "/dreambooth/models/star/runs/1"
    assert len(asked.get(f"{place}/differences").json()["differences"]) == 2
    both = asked.post(f"{place}/resume", json={"model_settings": True, "settings": {"previews.count": 2}})
    assert "exclude each other" in both.json()["problems"][0]
    assert asked.post(f"{place}/resume", json={"model_settings": True}).json()["status"] == "queued"
    assert job.changes() == {"intervals.num_train_epochs": 7}
