"""A WebUI that lies elsewhere than when its runs were made: moved, or copied while the old one is still there."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from dreambooth.core import device, project, run, settings
from dreambooth.core.layout import MINIATURE, SUBJECT_PICTURES
from dreambooth.core.project import Folders
from dreambooth.core.run import Job
from dreambooth.engine.work import Work
from dreambooth.host.standalone import Standalone
from dreambooth.service import environment, going_on, launcher, queue, runs
from dreambooth.ui import command_line

SHORT = {
    "concepts.0.instance_data_dir": str(SUBJECT_PICTURES),
    "concepts.0.instance_prompt": "sks star",
    "intervals.max_train_steps": 2,
    "previews.count": 0,
    "lora.rank": 2,
}


@pytest.fixture
def old(tmp_path: Path) -> Folders:
    return Folders(tmp_path / "old" / "models")


@pytest.fixture
def paused(old: Folders) -> Job:
    """A run that rests; its engine is no more."""
    star = project.create(old, "star", MINIATURE, SHORT)
    job = run.new_run(old, star, settings.parse(star.settings()))
    job.report("started", kind="train", pid=1, parent=1)
    job.report("paused")
    return job


def elsewhere(old: Folders, name: str = "new") -> Folders:
    return Folders(old.models.parent.with_name(name) / "models")


def moved(old: Folders) -> Folders:
    new = elsewhere(old)
    old.models.parent.rename(new.models.parent)
    return new


def copied(old: Folders) -> Folders:
    new = elsewhere(old)
    shutil.copytree(old.models.parent, new.models.parent)
    return new


def test_the_engine_of_a_copy_is_on_the_device_of_the_copy(old: Folders, paused: Job) -> None:
    new = copied(old)
    held = device.hold(run.find(new, "star"))
    assert held
    with held:
        assert device.is_busy(new) and not device.is_busy(old)
        assert device.holder(new) == run.find(new, "star")


def test_a_run_that_goes_on_in_a_copy_writes_there(old: Folders, paused: Job) -> None:
    new = copied(old)
    job = run.find(new, "star")
    going_on.prepare(new, job, {})
    work = Work.open(job)
    assert (work.folders.loras, work.project.folder) == (new.loras, new.projects / "star")
    assert paused.read()["models"] == str(old.models)


def test_a_run_of_a_model_whose_folder_was_renamed_by_hand_goes_on(old: Folders, paused: Job) -> None:
    (old.projects / "star").rename(old.projects / "sun")
    job = run.find(old, "sun")
    going_on.prepare(old, job, {})
    assert Work.open(job).project.name == "sun"


def test_what_waited_when_the_webui_was_moved_is_started_in_the_new_place(
    old: Folders, paused: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused.request("start")
    new, places = moved(old), list[Path]()
    monkeypatch.setattr(environment, "is_current", lambda: True)
    monkeypatch.setattr(launcher, "start", lambda job, *_: places.append(job.folders().models))
    queue.Queue(Standalone(str(new.models))).tick()
    assert places == [new.models]
    assert not old.models.exists()


def test_a_command_in_the_new_place_goes_on_with_a_run(
    old: Folders, paused: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = moved(old)
    monkeypatch.setenv("DREAMBOOTH_ENGINE_PYTHON", sys.executable)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert command_line.main(["resume", "star", "--data", str(new.models)]) == 0
    (made,) = runs.summary(run.find(new, "star"))["outputs"]
    assert Path(made).parent == new.loras and Path(made).exists()
    assert not old.models.exists()


def test_of_two_webuis_with_one_models_folder_each_gets_what_it_has_asked_for(
    old: Folders, paused: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, host = old.moved(loras=old.models / "first"), Standalone(str(old.models))
    second = Folders(old.models).moved(loras=old.models / "second")
    monkeypatch.setattr(host, "folders", lambda: second)
    monkeypatch.setattr(environment, "is_current", lambda: True)
    started = list[Job]()
    monkeypatch.setattr(launcher, "start", lambda job, *_: started.append(job))
    going_on.prepare(first, paused, {})
    paused.request("start")
    queue.Queue(host).tick()  # the other one's, which comes to look first
    assert started == [paused]
    assert Work.open(paused).folders.loras == old.models / "first"
    paused.clear_request("start")
    going_on.prepare(second, paused, {})
    assert Work.open(paused).folders.loras == old.models / "second"


@pytest.mark.parametrize("said", [3, [], {"loras": 3}, {"loras": "here"}, {"loras": "/a\0"}])
def test_damaged_folders_of_a_job_are_the_usual_ones(old: Folders, paused: Job, said: object) -> None:
    told = {**paused.read(), "folders": said}
    (paused.folder / "job.json").write_text(json.dumps(told))
    assert paused.folders().loras == old.loras
