"""The queue: one engine at a time, the GPU lent meanwhile, and all of it found again by whoever looks after it next."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dreambooth.core import device, project, settings
from dreambooth.core.errors import UserError
from dreambooth.core.files import lock
from dreambooth.core.install_paths import MINIATURE, SUBJECT_PICTURES
from dreambooth.core.job_folder import Job
from dreambooth.core.project import Folders, Project
from dreambooth.service import environment, exporting, launcher, queue, resume_run, runs

SHORT = {
    "concepts.0.instance_data_dir": str(SUBJECT_PICTURES),
    "concepts.0.instance_prompt": "sks star",
    "intervals.max_train_steps": 2,
    "previews.count": 0,
    "lora.rank": 2,
}


class Host:
    """A WebUI that notes what it is asked."""

    def __init__(self, models: Path) -> None:
        self.models, self.lent, self.said = Folders(models), False, []  # type: ignore[var-annotated]

    def folders(self) -> Folders:
        return self.models

    def refresh(self) -> None:
        self.said.append("refresh")

    def lend_gpu(self) -> None:
        if not self.lent:
            self.said.append("lend")
        self.lent = True

    def take_gpu_back(self) -> None:
        if self.lent:
            self.said.append("take back")
        self.lent = False

    alone_minutes = 0.0


_KILLED = "code 15" if os.name == "nt" else "signal 9, SIGKILL"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setenv("DREAMBOOTH_ENGINE_PYTHON", sys.executable)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return Host(tmp_path)


@pytest.fixture
def star(host: Host) -> Project:
    return project.create(host.models, "star", MINIATURE, SHORT)


def new_run(host: Host, star: Project, **more: Any) -> Job:
    return launcher.new_run(host.models, star, settings.parse({**star.settings(), **more}))


def look(looked: queue.Queue, until: Callable[[], bool], seconds: float = 120) -> None:
    """Lets the queue look until something is so."""
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "it took too long"
        looked.tick()
        time.sleep(0.05)


def test_two_runs_follow_each_other_and_the_gpu_comes_back(host: Host, star: Project) -> None:
    first, second = new_run(host, star), new_run(host, star)
    for job in (first, second):
        assert queue.submit(job)["status"] == "queued"
    assert queue.waiting(host.models) == ["star/1", "star/2"]
    with pytest.raises(UserError, match="queued already"):
        queue.submit(first)
    looked, together = queue.Queue(host), []

    def both_done() -> bool:
        together.append(first.is_alive() and second.is_alive())
        return {first.status(), second.status()} == {"done"} and not host.lent

    look(looked, both_done)
    assert not any(together)
    assert host.said[0] == "lend" and host.said[-1] == "take back" and host.said.count("refresh") >= 2
    with pytest.raises(UserError, match="cannot be resumed: it is done"):
        resume_run.check_resumable(first)


def test_a_killed_engine_is_lost_with_its_cause_and_resumes(host: Host, star: Project) -> None:
    job = new_run(host, star, **{"intervals.max_train_steps": 4000, "intervals.save_state_every": 1})
    queue.submit(job)
    look(queue.Queue(host), lambda: any(event["event"] == "state" for event in job.events()[0]))
    after = queue.Queue(host)  # the WebUI was restarted meanwhile
    after.tick()
    assert host.lent and runs.summary(job)["status"] == "running"
    with pytest.raises(UserError, match="running already"):
        launcher.start(job, Path(sys.executable))
    launcher.kill(job)
    look(after, lambda: not host.lent)
    said = runs.summary(job)
    assert said["status"] == "lost" and said["resumable"] and _KILLED in said["problems"][0]
    queue.submit(job)
    look(after, lambda: any(event["event"] == "resumed" for event in job.events()[0]))
    runs.ask(job, "discard")
    look(after, lambda: not host.lent)
    assert job.status() == "stopped"


def test_what_a_run_writes_is_listed_before_it_ends(host: Host, star: Project) -> None:
    job = new_run(host, star, **{"intervals.max_train_steps": 4000, "intervals.save_model_every": 1})
    queue.submit(job)
    looked = queue.Queue(host)
    look(looked, lambda: "refresh" in host.said)
    assert job.status() == "running"
    runs.ask(job, "discard")
    look(looked, lambda: not host.lent)


def test_a_result_that_took_anothers_place_is_listed(host: Host, star: Project) -> None:
    """There are as many as before."""
    job, looked = new_run(host, star), queue.Queue(host)
    with device.hold(job):  # type: ignore[union-attr]
        for number in (1, 2):
            job.report("saved", kind="lora", path=f"/{number}.safetensors", bytes=1, images=number)
            if number > 1:
                job.report("removed", path=f"/{number - 1}.safetensors")
            looked.tick()
            assert host.said.count("refresh") == number
            looked.tick()
            assert host.said.count("refresh") == number


def test_an_exported_file_is_listed(host: Host, star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = queue.Queue(host)
    monkeypatch.setattr(queue, "_watcher", SimpleNamespace(queue=looked))
    target = host.models.checkpoints / "copy.safetensors"
    fields = exporting.fields(star, {"base": True, "to": str(target)})
    queue.submit(launcher.new_errand(host.models, star, "export", settings.parse({}), **fields))
    look(looked, lambda: bool(host.said))
    assert host.said == ["refresh"] and target.exists()


def test_what_waits_can_be_taken_out(host: Host, star: Project) -> None:
    job = new_run(host, star)
    queue.submit(job)
    runs.ask(job, "pause")
    assert job.status() == "new" and queue.waiting(host.models) == []
    queue.Queue(host).tick()
    assert not host.lent and not job.events()[0]


def test_an_errand_that_is_taken_out_has_ended(host: Host, star: Project) -> None:
    def drawing() -> Job:
        return launcher.new_errand(host.models, star, "generate", settings.parse({}), prompt="a star")

    by_a_person, by_itself = drawing(), drawing()
    for job, note in ((by_a_person, ""), (by_itself, queue.WAITER)):
        job.request("start", note)  # the command that waited for the second is gone
    runs.ask(by_a_person, "stop")
    assert queue.waiting(host.models) == []
    assert by_a_person.status() == by_itself.status() == "stopped"


def test_what_a_job_waits_for(host: Host, star: Project) -> None:
    first, second = new_run(host, star), new_run(host, star)
    for job in (first, second):
        queue.submit(job)
    assert queue.waits_for(first, host.models) is None
    assert queue.waits_for(second, host.models) == first
    with device.hold(first):  # type: ignore[union-attr]
        first.clear_request("start")
        assert queue.waits_for(second, host.models) == first


def test_what_is_taken_out_while_the_webui_finishes_a_picture_is_not_started(
    host: Host, star: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, looked = new_run(host, star), queue.Queue(host)
    queue.submit(job)
    monkeypatch.setattr(host, "lend_gpu", lambda: runs.ask(job, "pause"))
    looked.tick()
    assert job.status() == "new" and not looked.starting


def test_an_engine_leaves_again_where_its_job_was_taken_out_as_it_started(host: Host, star: Project) -> None:
    job, looked = new_run(host, star), queue.Queue(host)
    process = launcher.start(job, Path(sys.executable), queued=True)
    assert process.wait(60) in queue.WAITS_ON
    assert job.status() == "new" and not job.events()[0]
    queue.submit(job)  # who asks anew before that engine is forgotten waits on
    looked.starting[job] = process
    looked._settle_starting()
    assert job.status() == "queued" and not looked.starting


def test_an_engine_that_was_faster_than_a_person_hears_it(
    host: Host, star: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, engine, clear = new_run(host, star), [], Job.clear_request

    def beaten(self: Job, what: str) -> bool:
        engine.append(self.hold())
        clear(self, what)
        return clear(self, what)

    queue.submit(job)
    monkeypatch.setattr(Job, "clear_request", beaten)
    runs.ask(job, "pause")
    assert job.is_alive() and job.requests() == {"pause"}


def test_ctrl_c_takes_a_job_out_or_pauses_an_engine_that_was_faster(
    host: Host, star: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, engine = new_run(host, star), []

    def interrupted(looked: queue.Queue) -> None:
        raise KeyboardInterrupt

    def begun(looked: queue.Queue) -> None:
        engine.append(job.hold())
        job.clear_request("start")
        raise KeyboardInterrupt

    monkeypatch.setattr(queue.Queue, "tick", interrupted)
    with pytest.raises(KeyboardInterrupt):
        queue.take_turn(job, host, lambda said: None)
    assert job.status() == "new" and not job.requests() and not job.waits
    monkeypatch.setattr(queue.Queue, "tick", begun)
    queue.take_turn(job, host, lambda said: None)
    assert job.is_alive() and job.requests() == {"pause"}


def test_a_check_waits_for_nobody(host: Host, star: Project) -> None:
    job = launcher.new_errand(host.models, star, "check", settings.parse(star.settings()), sheet="")
    queue.submit(job)
    look(queue.Queue(host), lambda: job.status() == "done")
    assert runs.outcome(job)["result"]["steps"] == 2 and not host.said


def test_a_job_that_waits_for_a_set_up_leaves_the_gpu_to_the_webui(
    host: Host, star: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set-up waits for the engine at work, takes minutes, and may fail; nothing is on the GPU meanwhile."""
    monkeypatch.setattr(environment, "SETTING_UP", tmp_path / "setting-up")
    job, looked = new_run(host, star), queue.Queue(host)
    queue.submit(job)
    host.lend_gpu()  # as for the job before it
    setting_up = lock.acquire(environment.SETTING_UP)
    assert setting_up
    with setting_up:
        looked.tick()
    assert job.status() == "queued" and not looked.starting and not host.lent


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("python", "DREAMBOOTH_ENGINE_PYTHON names {}, but there is no such file; correct or remove it."),
        (
            "notes.txt",
            "The engine could not be started ([Errno 13] Permission denied: '{}'). Run setup (on the page: Set Up)",
        ),
    ],
)
def test_an_engine_that_cannot_start_leaves_the_queue_and_says_why(
    host: Host, star: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, told: str
) -> None:
    job = new_run(host, star)
    queue.submit(job)
    (tmp_path / "notes.txt").touch(0o644)
    monkeypatch.setenv("DREAMBOOTH_ENGINE_PYTHON", str(tmp_path / named))
    looked = queue.Queue(host)
    looked.tick()
    looked.tick()
    assert job.status() == "failed" and not host.lent and not job.requests()
    (problem,) = runs.errors(job, "failed")
    assert problem.sentence.startswith(told.format(tmp_path / named))


def test_an_errand_whose_engine_ends_before_it_begins_has_failed(
    host: Host, star: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = launcher.new_errand(host.models, star, "check", settings.parse(star.settings()), sheet="")
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no such library >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("DREAMBOOTH_ENGINE_PYTHON", str(broken))
    queue.submit(job)
    look(queue.Queue(host), lambda: job.status() == "failed")
    (problem,) = runs.outcome(job)["errors"]
    assert "ended before it began (code 1)" in problem["what"] and problem["log"] == "no such library"


def test_old_errands_go_and_runs_stay(host: Host, star: Project) -> None:
    kept, old = new_run(host, star), launcher.new_errand(host.models, star, "check", settings.parse({}), sheet="")
    young = launcher.new_errand(host.models, star, "check", settings.parse({}), sheet="")
    for job in (kept, old):
        os.utime(job.folder, (0, 0))
    queue.tidy(host.models)
    assert kept.folder.exists() and young.folder.exists() and not old.folder.exists()


def test_what_cannot_be_tidied_stops_neither_the_rest_nor_the_queue(
    host: Host, star: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, old = (launcher.new_errand(host.models, star, "check", settings.parse({}), sheet="") for _ in range(2))
    for job in (bad, old):
        os.utime(job.folder, (0, 0))
    status = Job.status

    def refused(self: Job) -> str:
        if self == bad:
            raise PermissionError(13, "Permission denied")
        return status(self)

    monkeypatch.setattr(Job, "status", refused)
    queue.tidy(host.models)
    assert bad.folder.exists() and not old.folder.exists()

    def looked(self: queue.Queue) -> None:
        raise KeyboardInterrupt  # nothing less ends it

    def broken(folders: Folders) -> None:
        raise OSError("the folder is away")

    monkeypatch.setattr(queue, "_watcher", None)
    monkeypatch.setattr(queue._Watcher, "start", queue._Watcher.run)  # here, not in a thread
    monkeypatch.setattr(queue.Queue, "tick", looked)
    monkeypatch.setattr(queue, "tidy", broken)
    with pytest.raises(KeyboardInterrupt):
        queue.watch(host)


@pytest.mark.parametrize(("seconds", "times"), [(0.0, 3), (1000.0, 1)])
def test_the_queue_tidies_again_and_again_as_a_webui_may_be_open_for_weeks(
    host: Host, monkeypatch: pytest.MonkeyPatch, seconds: float, times: int
) -> None:
    ticks, tidied = list[int](), list[Folders]()

    def tick(self: queue.Queue) -> None:
        ticks.append(1)
        if len(ticks) == 3:
            raise KeyboardInterrupt  # nothing less ends it

    monkeypatch.setattr(queue, "TIDY_SECONDS", seconds)
    monkeypatch.setattr(queue, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(queue, "tidy", tidied.append)
    monkeypatch.setattr(queue.Queue, "tick", tick)
    with pytest.raises(KeyboardInterrupt):
        queue._Watcher(host).run()
    assert len(tidied) == times


def wait(until: Callable[[], bool], seconds: float = 120) -> float:
    """The seconds until something was so."""
    began = time.monotonic()
    while not until():
        assert time.monotonic() < began + seconds, "it took too long"
        time.sleep(0.05)
    return time.monotonic() - began


def said(job: Job, kind: str) -> bool:
    return any(event["event"] == kind for event in job.events()[0])


def test_an_engine_left_alone_saves_its_state_and_pauses(host: Host, star: Project) -> None:
    job = new_run(host, star, **{"intervals.max_train_steps": 40_000})
    process = launcher.start(job, Path(sys.executable), alone_seconds=3)
    while not said(job, "step"):  # as long as somebody looks after it, it goes on
        assert not said(job, "alone") and process.poll() is None
        job.watch()
        time.sleep(0.1)
    assert wait(lambda: process.poll() is not None, 60) >= 2
    assert said(job, "alone") and said(job, "state") and job.status() == "paused"


# In each phase before training a stop or a pause is heard and ends the job; nothing was learned that could be lost.
@pytest.mark.parametrize(
    ("phase", "request_", "ending"),
    [
        ("started", "stop", "stopped"),
        ("loading the model", "pause", "paused"),
        ("encoding pictures", "discard", "stopped"),
    ],
)
def test_a_request_is_honoured_in_each_phase(
    host: Host, star: Project, phase: str, request_: runs.Request, ending: str
) -> None:
    job = new_run(host, star, **{"intervals.max_train_steps": 40_000})
    process = launcher.start(job, Path(sys.executable))

    def reached() -> bool:
        return any(phase in (event["event"], event.get("name")) for event in job.events()[0])

    wait(reached)
    job.request(request_)
    wait(lambda: said(job, "heard") or process.poll() is not None, 20)
    wait(lambda: process.poll() is not None, 60)
    assert job.status() == ending
    assert not said(job, "failed") and not job.waits


def test_whoever_resumes_a_run_that_another_has_just_started_is_told(
    host: Host, star: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it does not start once more when it ends."""
    job, held, request = new_run(host, star), list[Any](), Job.request
    for moment in ("check", "request"):
        with monkeypatch.context() as patched:
            if moment == "check":
                patched.setattr(queue.preflight, "check", lambda job: held.append(job.hold()))
            else:
                patched.setattr(Job, "request", lambda *asked: held.append(job.hold()) or request(*asked))
            with pytest.raises(UserError, match="is running already"):
                queue.submit(job)
        assert held[-1] and not job.waits
        held[-1].close()
