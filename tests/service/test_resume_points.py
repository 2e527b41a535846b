"""Going on with a run: from an earlier state, where the later ones go to the trash, and with the model's settings."""

from __future__ import annotations

import errno
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from dreambooth.core import job_folder, job_list, project
from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic
from dreambooth.core.install_paths import MINIATURE, SUBJECT_PICTURES
from dreambooth.core.project import Folders
from dreambooth.core.schema import HIDDEN
from dreambooth.core.settings import parse
from dreambooth.host.standalone import Standalone
from dreambooth.service import api, exporting, resume_run, short_jobs

CONCEPT = {  # five pictures
    "concepts.0.instance_data_dir": str(SUBJECT_PICTURES),
    "concepts.0.instance_prompt": "a photo of sks star",
}


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    made = Folders(tmp_path / "models")
    project.create(made, "star", MINIATURE, CONCEPT)
    return made


def paused(folders: Folders, *more: str, **changes: Any) -> job_folder.Job:
    job = job_list.new_run(folders, project.open_project(folders, "star"), parse({**CONCEPT, **changes}))
    for step in (10, 20, 30):
        (job.state / f"{step:09}").mkdir(parents=True)
    lines = [{"event": "started"}, *({"event": one} for one in more), {"event": "paused"}]
    (job.folder / "events.jsonl").write_text("".join(json.dumps({**line, "time": 0}) + "\n" for line in lines))
    return job


def test_later_states_are_moved_to_the_trash(folders: Folders) -> None:
    job = paused(folders)
    assert job.states() == [10, 20, 30]
    resume_run.prepare(folders, job, {}, 10)
    assert job.states() == [10]
    assert sorted(path.name for path in folders.trash.iterdir()) == [
        "star run 1 state 000000020",
        "star run 1 state 000000030",
    ]
    (job.state / "000000020").mkdir()
    resume_run.prepare(folders, job, {}, 10)  # once more: nothing in the trash is overwritten
    assert len(list(folders.trash.iterdir())) == 3


def test_the_newest_state_moves_nothing(folders: Folders) -> None:
    job = paused(folders)
    resume_run.prepare(folders, job, {}, 30)
    assert job.states() == [10, 20, 30]


def test_what_cannot_be_is_refused_and_moves_nothing(folders: Folders) -> None:
    job = paused(folders)
    with pytest.raises(UserError, match=r"no state after step 15 \(there: 10, 20, 30\)"):
        resume_run.prepare(folders, job, {}, 15)
    written = paused(folders, "result")
    with pytest.raises(UserError, match="written its result already"):
        resume_run.prepare(folders, written, {}, 10)
    assert job.states() == written.states() == [10, 20, 30]


WEBHOOK = "reporting.webhook_url"


def test_the_models_settings_are_taken_where_they_may_change(folders: Folders) -> None:
    job, opened = paused(folders), project.open_project(folders, "star")
    assert resume_run.prospect(job, opened) == {"differences": [], "problems": []}
    secret = {WEBHOOK: "https://discord.com/api/webhooks/1/secret"}
    project.write_settings(opened, {**CONCEPT, "lora.rank": 4, "intervals.num_train_epochs": 7, **secret})
    prospect = resume_run.prospect(job, opened)
    assert {one["key"]: bool(one["why_not"]) for one in prospect["differences"]} == {
        "intervals.num_train_epochs": False,
        "lora.rank": True,
        WEBHOOK: False,
    }
    assert [one["given"] for one in prospect["differences"] if one["key"] == WEBHOOK] == [HIDDEN]
    assert "secret" not in json.dumps(prospect)
    resume_run.prepare(folders, job, resume_run.takeable(resume_run.differences(job, opened)))
    assert job.changes() == {"intervals.num_train_epochs": 7, **secret}
    assert [one.key for one in resume_run.differences(job, opened)] == ["lora.rank"]


def test_what_stands_in_the_way_of_the_models_settings_is_said_and_nothing_taken(folders: Folders) -> None:
    job, opened = paused(folders), project.open_project(folders, "star")
    rests = {"intervals.epoch_pause_frequency": 2, "intervals.epoch_pause_time": 5}
    lion = {"optimizer.name": "lion", "learning.lora_learning_rate": 2e-5}
    project.write_settings(opened, {**CONCEPT, **rests, **lion})  # the rate may change, the optimizer may not
    assert resume_run.prospect(job, opened)["problems"] == []
    prodigy = {"optimizer.name": "prodigy", "learning.lora_learning_rate": 1.0}
    project.write_settings(opened, {**CONCEPT, **rests, **prodigy})
    [problem] = resume_run.prospect(job, opened)["problems"]
    assert "a factor for prodigy; for adamw take" in problem, "of the optimizer that stays it would ruin the model"
    project.write_settings(opened, {**CONCEPT, **rests})
    written = paused(folders, "result")
    assert "written its result already" in resume_run.prospect(written, opened)["problems"][0]
    with pytest.raises(UserError, match="written its result already"):
        resume_run.prepare(folders, written, resume_run.takeable(resume_run.differences(written, opened)))
    assert written.changes() == {}


def test_going_on_with_the_models_settings_over_the_api(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DREAMBOOTH_ENGINE_PYTHON", sys.executable)  # nothing is started here
    job, opened = paused(folders), project.open_project(folders, "star")
    project.write_settings(opened, {**CONCEPT, "lora.rank": 4, "intervals.num_train_epochs": 7})
    app = FastAPI()
    app.include_router(api.router(Standalone(str(folders.models))))
    asked, place = TestClient(app, base_url="http://here"), "/dreambooth/models/star/runs/1"
    assert len(asked.get(f"{place}/differences").json()["differences"]) == 2
    both = asked.post(f"{place}/resume", json={"model_settings": True, "settings": {"previews.count": 2}})
    assert "exclude each other" in both.json()["problems"][0]
    assert asked.post(f"{place}/resume", json={"model_settings": True}).json()["status"] == "queued"
    assert job.changes() == {"intervals.num_train_epochs": 7}


def test_a_length_that_is_passed_already_is_refused_before_anything_is_changed_or_moved(folders: Folders) -> None:
    job, opened = paused(folders), project.open_project(folders, "star")  # after 30 steps; an epoch has five
    for changes, steps in (({"intervals.num_train_epochs": 5}, 25), ({"intervals.max_train_steps": 29}, 29)):
        said = (
            rf"{next(iter(changes))}: the run has made 30 steps already, more than the {steps} that it is to have now"
        )
        with pytest.raises(UserError, match=said):
            resume_run.prepare(folders, job, changes)
        project.write_settings(opened, {**CONCEPT, **changes})
        assert "has made 30 steps already" in resume_run.prospect(job, opened)["problems"][0]
    with pytest.raises(UserError, match="has made 20 steps already"):
        resume_run.prepare(folders, job, {"intervals.num_train_epochs": 3}, 20)
    assert job.changes() == {} and job.states() == [10, 20, 30]
    assert resume_run.prepare(folders, job, {"intervals.num_train_epochs": 5}, 20) == {"intervals.num_train_epochs": 5}
    assert job.states() == [10, 20], "from an earlier state there is room for so short a run"


def test_pictures_that_went_make_a_run_shorter_than_it_has_become(folders: Folders, tmp_path: Path) -> None:
    for number in range(2):
        shutil.copyfile(SUBJECT_PICTURES / "1.png", tmp_path / f"{number}.png")
    job = paused(folders, **{"concepts.0.instance_data_dir": str(tmp_path), "intervals.num_train_epochs": 15})
    resume_run.prepare(folders, job, {})
    (tmp_path / "1.png").unlink()
    with pytest.raises(UserError, match="more than the 15 that it is to have now"):
        resume_run.prepare(folders, job, {})
    (tmp_path / "0.png").unlink()
    with pytest.raises(UserError, match=r"concepts\.0\.instance_data_dir: there are no pictures in"):
        resume_run.prepare(folders, job, {})


def test_a_step_without_a_state_is_called_as_the_person_has_asked_for_it(folders: Folders) -> None:
    job = paused(folders)
    with pytest.raises(UserError, match=r"^from_step: the run star/1 has no state after step 15"):
        resume_run.prepare(folders, job, {}, 15)
    with pytest.raises(UserError, match=r"^--from-step: the run star/1 has no state after step 15"):
        resume_run.prepare(folders, job, {}, 15, label="--{}")
    opened = project.open_project(folders, "star")
    with pytest.raises(UserError, match=r"^from_step: the run"):
        exporting.state(opened, {"from_step": 15})
    with pytest.raises(UserError, match=r"^lora_weight: "):
        short_jobs.drawing(opened, {"prompt": "a star", "lora_weight": 9})


def test_what_holds_without_the_models_settings_too_does_not_speak_against_them(
    folders: Folders, tmp_path: Path
) -> None:
    job = paused(folders, **{"concepts.0.instance_data_dir": str(tmp_path / "gone")})
    opened = project.open_project(folders, "star")
    project.write_settings(opened, {**job.settings(), "previews.count": 2})
    assert resume_run.prospect(job, opened)["problems"] == []
    with pytest.raises(UserError, match="there is no folder"):
        resume_run.prepare(folders, job, {"previews.count": 2})


@pytest.mark.parametrize("at", ["20", "changes.json"])
def test_a_run_that_cannot_go_back_whole_stays_where_it_is(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Of its later states the second cannot be moved, or its changes not be written."""
    job, move = paused(folders), atomic.move

    def full(source: Path, target: Path) -> None:
        if source.name.endswith(at) or target.name == at:
            raise OSError(errno.ENOSPC, "No space left on device")
        move(source, target)

    monkeypatch.setattr(atomic, "move", full)
    with pytest.raises((UserError, OSError), match="No space left"):
        resume_run.prepare(folders, job, {"intervals.num_train_epochs": 9}, 10)
    assert job.changes() == {} and job.states() == [10, 20, 30]
