"""Asking jobs for something from the command line, and giving up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dreambooth.core import job_list, project, settings
from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import MINIATURE, SUBJECT_PICTURES
from dreambooth.core.job_folder import Job
from dreambooth.core.project import Folders, Project
from dreambooth.service import environment, launcher, queue
from dreambooth.ui import command_line
from tests.conftest import ROOT

FLAGS = {"concepts.0.instance_data_dir": str(SUBJECT_PICTURES), "concepts.0.instance_prompt": "x"}


@pytest.fixture
def star(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("DREAMBOOTH_ENGINE_PYTHON", sys.executable)
    return project.create(Folders(tmp_path / "models"), "star", MINIATURE, FLAGS)


@pytest.fixture
def rests(star: Project) -> Job:
    """A run that was paused, with two states."""
    job = launcher.new_run(folders(star), star, settings.parse(star.settings()))
    job.report("paused")
    for step in (3, 6):
        (job.state / f"{step:09}").mkdir(parents=True)
    return job


def folders(star: Project) -> Folders:
    return Folders(star.folder.parents[1])


def drawing(star: Project) -> Job:
    return launcher.new_errand(folders(star), star, "generate", settings.parse({}), prompt="x")


def asks(star: Project, *line: str) -> int:
    return command_line.main([*line, "--data", str(star.folder.parents[1])])


def test_an_errand_is_stopped_by_its_models_name(star: Project, rests: Job, capsys: pytest.CaptureFixture[str]) -> None:
    errand = drawing(star)
    assert errand.name == rests.name == "star/1"  # each has numbers of its own
    assert asks(star, "stop", "star") == 2
    assert capsys.readouterr().err == "The run star/1 is not running: it is paused.\n"
    with errand.hold():  # type: ignore[union-attr]
        assert asks(star, "stop", "star") == 0
    assert capsys.readouterr().out == "Asked star's generate to stop.\n"
    assert errand.requests() == {"stop"} and not rests.requests()


def test_a_run_waits_for_an_errand_of_its_number(star: Project, rests: Job) -> None:
    errand = drawing(star)
    errand.request("start")
    time.sleep(0.02)  # a disk's clock ticks slowly
    rests.request("start")
    before = "Waiting: another job is at work, and 1 more come first. Ctrl-C gives up."
    assert queue._ahead(rests, folders(star)) == before
    with queue.device.hold(errand):  # type: ignore[union-attr]
        errand.clear_request("start")
        assert queue._ahead(rests, folders(star)) == "Waiting: star's generate is at work. Ctrl-C gives up."
    rests.clear_request("start")
    assert queue._ahead(rests, folders(star)) == ""


@pytest.mark.parametrize("what", ["save", "preview"])
def test_a_run_is_asked_to_do_something_and_go_on(
    star: Project, rests: Job, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert asks(star, what, "star") == 2
    with rests.hold():  # type: ignore[union-attr]
        assert asks(star, what, "star") == 0
    assert rests.requests() == {what}
    assert capsys.readouterr().out.endswith("now; it goes on.\n")


def test_nothing_is_moved_before_an_engine_is_there(
    star: Project, rests: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(progress: object) -> Path:
        raise UserError("The engine cannot be set up.")

    def interrupted(looked: queue.Queue) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(environment, "ensure", broken)
        assert asks(star, "resume", "star", "--from-step", "3", "--intervals.num_train_epochs", "500") == 2
    assert rests.states() == [3, 6] and not rests.changes()
    monkeypatch.setattr(queue.Queue, "tick", interrupted)
    assert asks(star, "resume", "star", "--from-step", "3") == command_line.INTERRUPTED
    said = capsys.readouterr().err
    assert f"In the trash now, {folders(star).trash}: its states after steps 6" in said and rests.states() == [3]


@pytest.mark.skipif(os.name == "nt", reason="a pipe that nobody reads is another error there")
def test_a_run_that_was_given_up_is_gone_though_nobody_reads(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with `2>&1 | tee`, which Ctrl-C ends too."""
    reading, writing = os.pipe()
    os.close(reading)

    def interrupted(looked: queue.Queue) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(queue.Queue, "tick", interrupted)
    with open(writing, "w", buffering=1) as nobody, monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", nobody)
        assert asks(star, "train", "star") == command_line.INTERRUPTED
        with pytest.raises(BrokenPipeError):
            nobody.write("closing it again fails\n")
        os.dup2(os.open(os.devnull, os.O_WRONLY), writing)
    assert job_list.runs(star) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows ends processes without asking them")
def test_the_page_ends_with_the_command() -> None:
    child = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    code = f"import sys; from dreambooth.ui.commands import serve; serve([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout
        number = int(command.stdout.readline())
        command.send_signal(signal.SIGTERM)
        command.wait(30)
        end = time.monotonic() + 10
        while Path(f"/proc/{number}").exists() or _lives(number):
            assert time.monotonic() < end, "the server goes on"
            time.sleep(0.05)


def _lives(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True
