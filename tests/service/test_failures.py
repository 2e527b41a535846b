"""How a run that failed tells of it: to programs, to a terminal, in the API and on the page, always in one form."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from dreambooth.core import job_folder, job_list, project
from dreambooth.core.errors import RUN_SETUP, UserError
from dreambooth.core.install_paths import MINIATURE, SUBJECT_PICTURES
from dreambooth.core.job_folder import Job
from dreambooth.core.project import Folders
from dreambooth.core.settings import parse
from dreambooth.engine import __main__ as engine
from dreambooth.host.standalone import Standalone
from dreambooth.service import api, exit_causes, runs
from dreambooth.ui import command_line, commands
from tests.conftest import Run

WRONG = ("what", "where", "do", "log")


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    made = Folders(tmp_path / "models")
    project.create(made, "star", MINIATURE)
    return made


def broken(folders: Folders, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A run whose engine met this."""
    opened = project.open_project(folders, "star")
    job = job_list.new_run(folders, opened, parse({"concepts.0.instance_data_dir": str(SUBJECT_PICTURES)}))
    job.log.write_text("before\nTraceback (most recent call last):\nthe last line\n")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(engine, "_do", fail)
    monkeypatch.setattr(engine, "take_signals", lambda job: None)
    monkeypatch.setattr(engine.Listener, "start", lambda listener: None)
    assert engine.main([str(job.folder)]) == engine.BROKEN
    return job


def test_an_error_of_the_engines_own_is_told_with_its_log(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, dreambooth: Run
) -> None:
    job = broken(folders, ZeroDivisionError("division by zero"), monkeypatch)
    event = job.events()[0][-1]
    assert event["event"] == "failed"
    assert event["errors"][0]["where"] == str(job.log)
    (error,) = runs.summary(job)["errors"]
    assert tuple(error) == WRONG
    assert "division by zero" in error["what"]
    assert error["do"]
    assert error["log"].endswith("the last line")
    app = FastAPI()
    app.include_router(api.router(Standalone(str(folders.models))))
    asked = TestClient(app, base_url="http://here")
    assert asked.get("/dreambooth/models/star/runs/1").json()["errors"] == [error]
    refused = asked.post("/dreambooth/models/star/runs/1/resume", json={"settings": {"lora.rank": 3}})
    assert refused.status_code == 400
    assert [(one["where"], one["do"]) for one in refused.json()["errors"]] == [
        ("lora.rank", "Leave it, or start a new run.")
    ]
    assert asked.post("/dreambooth/models/star/runs/x/resume").json()["errors"][0]["where"] == "number"
    said = dreambooth("resume", "star/1", "--lora.rank", 3, "--data", folders.models)
    assert (said.code, said.answer["errors"]) == (2, refused.json()["errors"])


def test_a_run_that_is_discarded_before_it_has_begun_keeps_nothing(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its engine was still importing, so the run itself could not tidy up."""
    job = job_list.new_run(folders, project.open_project(folders, "star"), parse({}))
    (job.state / f"{5000:09}").mkdir(parents=True)
    for name in (job_folder.BEFORE, job_folder.FITTED):
        (job.folder / name).touch()
    job.report("started")
    job.report("paused")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "_do", interrupted)
    monkeypatch.setattr(engine, "take_signals", lambda job: None)
    monkeypatch.setattr(engine.Listener, "start", lambda listener: setattr(listener, "has_ended", True))
    job.request("discard")
    assert engine.main([str(job.folder)]) == engine.DONE
    assert (job.status(), job.states()) == ("stopped", [])
    assert not {job.state.name, job_folder.BEFORE, job_folder.FITTED} & {path.name for path in job.folder.iterdir()}


@pytest.mark.parametrize("error", [ImportError("cannot import name 'safe_open'"), SyntaxError("null bytes")])
def test_a_package_that_does_not_load_has_the_set_up_repair_it(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    (told,) = runs.errors(broken(folders, error, monkeypatch), "failed")
    assert told.is_of_engine and str(error) in told.what and told.log


def test_too_little_memory_is_told_alike_in_every_job(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    (error,) = runs.errors(broken(folders, MemoryError(), monkeypatch), "failed")
    assert error.what.startswith("The memory was not enough while preparing")
    assert "general.resolution" in error.do


def test_a_terminal_shows_the_sentence_and_the_end_of_the_log(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    job = broken(folders, ZeroDivisionError("division by zero"), monkeypatch)
    capfd.readouterr()

    def told(*_: object) -> None:
        raise UserError(runs.errors(job, "failed"))

    monkeypatch.setattr(commands, "runs", told)
    assert command_line.main(["runs", "--data", str(folders.models)]) == command_line.REFUSED
    shown = capfd.readouterr().err
    assert "division by zero" in shown
    assert "The log ends with:" in shown
    assert "    the last line" in shown


def test_events_of_earlier_versions_and_damaged_ones_are_still_told(folders: Folders) -> None:
    job = job_list.new_run(folders, project.open_project(folders, "star"), parse({}))
    for fields, sentence in (
        ({"problems": ["lora.rank: it is 0; set it to 1."]}, "lora.rank: it is 0; set it to 1."),
        ({"problems": ["A"], "errors": [3]}, "A"),
        ({"problems": None, "errors": None}, "The engine failed."),
    ):
        job.report("failed", refused=True, **fields)
        assert [one.sentence for one in runs.errors(job, "failed")] == [sentence]


def test_a_warning_has_the_form_of_a_failure_everywhere(folders: Folders, dreambooth: Run) -> None:
    opened = project.open_project(folders, "star")
    job = job_list.new_run(folders, opened, parse({}))
    job.report("started")
    job.warn("reporting.webhook_url: the notice could not be sent (no host); look at the address.")
    job.warn(UserError("/disk/star.safetensors: the file cannot be written (full).").and_then("The run goes on."))
    job.report("warning", text="tuning.ema_decay: as an earlier version said it.")
    job.warn("reporting.webhook_url: the notice could not be sent (no host); look at the address.")  # once is enough
    job.report("paused")
    first, second, third = runs.summary(job)["warnings"]
    assert tuple(first) == WRONG
    assert (first["where"], first["do"]) == ("reporting.webhook_url", "Look at the address.")
    assert (second["where"], second["do"]) == ("/disk/star.safetensors", "The run goes on.")
    assert (third["where"], third["do"]) == ("tuning.ema_decay", "")
    told = [event for event in job.events()[0] if event["event"] == "warning"]
    assert told[1]["text"] == "/disk/star.safetensors: the file cannot be written (full). The run goes on."
    assert {key: told[0][key] for key in WRONG} == first
    app = FastAPI()
    app.include_router(api.router(Standalone(str(folders.models))))
    answer = TestClient(app, base_url="http://here").get("/dreambooth/models/star/runs/1").json()
    listed = dreambooth("runs", "--data", folders.models).answer["runs"][0]
    assert answer["warnings"] == listed["warnings"] == [first, second, third]


@pytest.mark.parametrize(("who", "told"), [(5, "0xC0000005"), (4, "0xC0000005"), (3, "without a word")])
def test_how_an_engine_ended_is_known_of_its_own_process_and_of_windows_launcher(
    folders: Folders, who: int, told: str
) -> None:
    job = job_list.new_run(folders, project.open_project(folders, "star"), parse({}))
    job.report("started", kind="train", pid=5, parent=4, boot="", memory_kills=0)
    (job.folder / "exit.json").write_text(json.dumps({"pid": who, "code": 0xC0000005}))
    assert told in exit_causes.loss(job).what
    assert exit_causes.loss(job).do == "No state was saved yet; start it again.", "the page offers no Resume then"
    job.report("state", step=7, path="", seconds=1, stalled=0)
    assert exit_causes.loss(job).do == "Resume goes on from its last state, at step 7."


@pytest.fixture
def paused(folders: Folders) -> Job:
    job = job_list.new_run(folders, project.open_project(folders, "star"), parse({}))
    job.report("started", kind="train", pid=1, parent=1)
    job.report("paused")
    return job


def ended(job: Job, code: int, pid: int) -> None:
    """What the starter of an engine writes down when that has ended."""
    exit_causes.note(job, SimpleNamespace(wait=lambda: code, pid=pid))  # type: ignore[arg-type]


def test_an_engine_that_ended_before_it_began_is_told_of(paused: Job) -> None:
    paused.log.write_text("Permission denied: '/gone'\n")
    ended(paused, 1, pid=2)
    summary = runs.summary(paused)
    assert summary["status"] == "paused"
    (error,) = summary["errors"]
    assert "ended before it began (code 1)" in error["what"] and error["do"] == RUN_SETUP
    assert "Permission denied" in error["log"]
    paused.request("start")
    assert not runs.summary(paused)["errors"]
    paused.clear_request("start")
    time.sleep(0.002)
    paused.report("started", kind="train", pid=3, parent=1)
    paused.report("paused")
    assert not runs.summary(paused)["errors"]


def test_the_end_of_an_engine_that_began_or_came_too_early_is_no_such_end(paused: Job) -> None:
    for code, pid in ((0, 1), (2, 2), (3, 2)):  # the last two found another one at work
        ended(paused, code, pid)
        assert not runs.summary(paused)["errors"]
    ended(paused, 1, pid=4)
    time.sleep(0.002)
    paused.report("started", kind="train", pid=5, parent=1)  # by somebody who did not stay to see how it ended
    paused.report("paused")
    assert not runs.summary(paused)["errors"]
