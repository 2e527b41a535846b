"""A WebUI that lies elsewhere than when its runs were made: moved, or copied while the old one is still there."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from dreambooth.core import device, job_list, model_record, project, settings
from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import MINIATURE, SUBJECT_PICTURES
from dreambooth.core.job_folder import Job
from dreambooth.core.project import Folders
from dreambooth.engine.work import Work
from dreambooth.host.standalone import Standalone
from dreambooth.service import environment, launcher, models, queue, relocation, resume_run, runs
from dreambooth.ui import command_line
from tests.service.test_queue import SHORT


@pytest.fixture
def old(tmp_path: Path) -> Folders:
    return Folders(tmp_path / "old" / "models")


@pytest.fixture
def paused(old: Folders) -> Job:
    """A run that rests; its engine is no more."""
    star = project.create(old, "star", MINIATURE, SHORT)
    job = job_list.new_run(old, star, settings.parse(star.settings()))
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


def test_a_renamed_model_with_a_damaged_job_is_renamed_whole(old: Folders, paused: Job) -> None:
    star = project.open_project(old, "star")
    damaged = job_list.new_run(old, star, settings.parse(star.settings())).folder / "job.json"
    damaged.write_text("{", encoding="utf-8")
    assert models.rename(old, "star", "moon")["name"] == "moon"
    first, second = job_list.runs(project.open_project(old, "moon"))
    assert first.read()["model"] == "moon" and (second.folder / "job.json").read_text() == "{"


def test_a_path_that_only_ends_like_the_models_own_stays_when_it_is_renamed(
    old: Folders, paused: Job, tmp_path: Path
) -> None:
    """Such as in a copy of the whole disk: there the folder is called as it was."""
    star = project.open_project(old, "star")
    backup = tmp_path / "backup" / star.folder.relative_to(star.folder.anchor) / "pictures" / "1"
    own = star.folder / "pictures" / "1"
    project.write_settings(
        star, {"concepts.0.instance_data_dir": str(backup), "concepts.1.instance_data_dir": str(own)}
    )
    models.rename(old, "star", "moon")
    moon = project.open_project(old, "moon")
    assert moon.settings()["concepts.0.instance_data_dir"] == str(backup)
    assert moon.settings()["concepts.1.instance_data_dir"] == str(moon.folder / "pictures" / "1")


def test_a_model_that_cannot_be_renamed_whole_is_called_as_before(
    old: Folders, paused: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = model_record.note_place

    def full(folder: Path, place: Path) -> None:
        if place.name == "moon":
            raise OSError(errno.ENOSPC, "No space left on device")
        note(folder, place)

    before = {path: path.read_bytes() for path in old.projects.rglob("*.json*")}
    monkeypatch.setattr(model_record, "note_place", full)
    with pytest.raises(UserError, match=r"star: it cannot be renamed \(No space left on device\)"):
        models.rename(old, "star", "moon")
    assert project.names(old) == ["star"] and paused.read()["model"] == "star"
    assert {path: path.read_bytes() for path in old.projects.rglob("*.json*")} == before


def test_a_model_that_is_copied_no_further_leaves_nothing_behind(
    old: Folders, paused: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what a kill has left is swept away a day later."""
    star = project.open_project(old, "star")
    kept = (star.folder / "settings.json").read_bytes()
    (star.folder / "settings.json").write_text("{", encoding="utf-8")
    before = sorted(old.projects.iterdir())
    with pytest.raises(UserError, match=r"settings\.json: the file is damaged"):
        models.duplicate(old, "star", "moon")
    assert sorted(old.projects.iterdir()) == before
    (star.folder / "settings.json").write_bytes(kept)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(project, "to_json", interrupted)
        project.create(old, "moon", MINIATURE)
    assert sorted(old.projects.iterdir()) == before
    for name, age in ((".copying-a", 90_000), (".creating-b", 90_000), (".copying-new", 0), (".mine-c", 90_000)):
        place = old.projects / name
        place.mkdir()
        os.utime(place, (time.time() - age,) * 2)
    queue.tidy(old)
    assert sorted(old.projects.iterdir()) == sorted([*before, old.projects / ".copying-new", old.projects / ".mine-c"])


def interrupted(*_: object) -> str:
    raise KeyboardInterrupt


def test_the_engine_of_a_copy_is_on_the_device_of_the_copy(old: Folders, paused: Job) -> None:
    new = copied(old)
    held = device.hold(job_list.find(new, "star"))
    assert held
    with held:
        assert device.is_busy(new) and not device.is_busy(old)
        assert device.holder(new) == job_list.find(new, "star")


def test_a_run_that_goes_on_in_a_copy_writes_there(old: Folders, paused: Job) -> None:
    new = copied(old)
    job = job_list.find(new, "star")
    resume_run.prepare(new, job, {})
    work = Work.open(job)
    assert (work.folders.loras, work.project.folder) == (new.loras, new.projects / "star")
    assert paused.read()["models"] == str(old.models)


def test_a_run_of_a_model_whose_folder_was_renamed_by_hand_goes_on(old: Folders, paused: Job) -> None:
    (old.projects / "star").rename(old.projects / "sun")
    job = job_list.find(old, "sun")
    resume_run.prepare(old, job, {})
    assert Work.open(job).project.name == "sun"


def test_what_waited_when_the_webui_was_moved_is_started_in_the_new_place(
    old: Folders, paused: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused.request("start")
    new, places = moved(old), list[Path]()
    monkeypatch.setattr(environment, "is_current", lambda: True)
    monkeypatch.setattr(launcher, "start", lambda job, *_, **__: places.append(job.folders().models))
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
    (made,) = runs.summary(job_list.find(new, "star"))["outputs"]
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
    monkeypatch.setattr(launcher, "start", lambda job, *_, **__: started.append(job))
    resume_run.prepare(first, paused, {})
    paused.request("start")
    queue.Queue(host).tick()  # the other one's, which comes to look first
    assert started == [paused]
    assert Work.open(paused).folders.loras == old.models / "first"
    paused.clear_request("start")
    resume_run.prepare(second, paused, {})
    assert Work.open(paused).folders.loras == old.models / "second"


@pytest.mark.parametrize("said", [3, [], {"loras": 3}, {"loras": "here"}, {"loras": "/a\0"}])
def test_damaged_folders_of_a_job_are_the_usual_ones(old: Folders, paused: Job, said: object) -> None:
    told = {**paused.read(), "folders": said}
    (paused.folder / "job.json").write_text(json.dumps(told))
    assert paused.folders().loras == old.loras


@pytest.fixture
def own(old: Folders) -> Job:
    """A run of a model that has everything in the WebUI's folder: checkpoint, dropped pictures, previews, a result."""
    source, result = old.checkpoints / "sub" / "base.safetensors", old.loras / "c\xe4t.safetensors"
    for file in (source, result):
        file.parent.mkdir(parents=True)
        shutil.copyfile(MINIATURE, file)
    cat = project.create(old, "c\xe4t", source, SHORT)
    pictures, preview = cat.folder / "pictures" / "1", cat.runs / "0001" / "previews" / "0.png"
    shutil.copytree(SUBJECT_PICTURES, pictures)
    project.write_settings(cat, {**cat.settings(), "concepts.0.instance_data_dir": str(pictures)})
    job = job_list.new_run(old, cat, settings.parse(cat.settings()))
    preview.parent.mkdir()
    preview.touch()
    job.report("started", kind="train", pid=1, parent=1)
    job.report("preview", images=1, paths=[str(preview), str(preview.with_name("gone.png"))])
    job.report("saved", kind="lora", path=str(result), bytes=1, images=1)
    job.report(
        "saved", kind="lora", path=str(old.models.parent.with_name("other") / "x.safetensors"), bytes=1, images=1
    )
    job.report("paused")
    return job


def test_what_came_along_with_a_webui_is_found_where_it_is_now(old: Folders, own: Job) -> None:
    before = own.story()
    new = moved(old)
    relocation.follow(new)
    opened = project.open_project(new, "c\xe4t")
    (job,) = job_list.runs(opened)
    pictures = str(opened.folder / "pictures" / "1")
    assert opened.source == new.checkpoints / "sub" / "base.safetensors"
    assert not opened.problem
    assert opened.settings()["concepts.0.instance_data_dir"] == pictures
    assert job.settings()["concepts.0.instance_data_dir"] == pictures
    assert job.story().previews[1] == [str(job.previews / "0.png"), before.previews[1][1]]  # what is gone stays so
    assert job.story().saved[0]["path"] == str(new.loras / "c\xe4t.safetensors")
    assert job.story().saved[1] == before.saved[1]
    resume_run.prepare(new, job, {})
    told = {file: file.stat().st_mtime_ns for file in opened.folder.rglob("*.json*")}
    relocation.follow(new)
    assert told == {file: file.stat().st_mtime_ns for file in opened.folder.rglob("*.json*")}


def test_a_copy_uses_what_it_names_as_long_as_that_is_there(old: Folders, own: Job) -> None:
    new = copied(old)
    relocation.follow(new)
    assert project.open_project(new, "c\xe4t").source.is_relative_to(old.models)
    shutil.rmtree(old.models.parent)
    relocation.follow(new)
    assert project.open_project(new, "c\xe4t").source.is_relative_to(new.models)


def test_only_the_model_was_moved(old: Folders, own: Job) -> None:
    new = elsewhere(old)
    new.projects.mkdir(parents=True)
    (old.projects / "c\xe4t").rename(new.projects / "cat 2")
    relocation.follow(new)
    opened = project.open_project(new, "cat 2")
    assert opened.source.is_relative_to(old.models)  # still there
    assert opened.settings()["concepts.0.instance_data_dir"] == str(opened.folder / "pictures" / "1")


def test_the_files_of_a_model_at_work_wait(old: Folders, own: Job) -> None:
    new = moved(old)
    held = job_list.find(new, "c\xe4t").hold()
    assert held
    with held:
        relocation.follow(new)
        assert project.open_project(new, "c\xe4t").problem
    relocation.follow(new)
    assert not project.open_project(new, "c\xe4t").problem


def test_a_renamed_model_and_a_copy_of_one_know_where_they_lie(old: Folders, own: Job) -> None:
    models.rename(old, "c\xe4t", "a")
    models.duplicate(old, "a", "b")
    new = moved(old)
    relocation.follow(new)
    for name in ("a", "b"):
        opened = project.open_project(new, name)
        assert opened.settings()["concepts.0.instance_data_dir"] == str(opened.folder / "pictures" / "1")


def test_a_command_follows_a_moved_webui(old: Folders, own: Job, capsys: pytest.CaptureFixture[str]) -> None:
    new = moved(old)
    assert command_line.main(["models", "--json", "--data", str(new.models)]) == 0
    assert json.loads(capsys.readouterr().out)["models"][0]["problem"] == ""


def test_a_checkpoint_that_is_gone_is_found_by_its_name_among_the_checkpoints(old: Folders, own: Job) -> None:
    source = old.checkpoints / "sub" / "base.safetensors"
    put = old.checkpoints / "base.safetensors"
    source.rename(put)
    opened = project.open_project(old, "c\xe4t")
    assert (opened.source, opened.problem) == (put, "")
    resume_run.prepare(old, own, {})
    put.unlink()
    opened = project.open_project(old, "c\xe4t")
    assert opened.source == source and "gone; put it back" in opened.problem


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has names that are not Unicode")
def test_folders_whose_names_are_not_unicode(tmp_path: Path) -> None:
    old = Folders(tmp_path / os.fsdecode(b"caf\xe9") / "models")
    project.create(old, "star", MINIATURE)
    models.rename(old, "star", "a")
    models.duplicate(old, "a", "b")
    new = Folders(tmp_path / os.fsdecode(b"caf\xe8") / "models")
    old.models.parent.rename(new.models.parent)
    relocation.follow(new)
    for name in ("a", "b"):
        folder = new.projects / name
        assert json.loads((folder / "model.json").read_text())["folder"] == str(folder)
