"""Stopping, killing and going on: the weights are those of a run that never stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dreambooth.core import job_list, project
from dreambooth.core.install_paths import MINIATURE, SUBJECT_PICTURES
from dreambooth.core.job_folder import Job
from dreambooth.core.project import Folders
from dreambooth.core.settings import parse
from dreambooth.engine import worker
from dreambooth.service import launcher
from tests.conftest import ROOT, Run

SHARED = {
    "concepts.0.instance_data_dir": str(SUBJECT_PICTURES),
    "concepts.0.instance_prompt": "a photo of {a|the} sks star, yellow, on white",
    "captions.shuffle_tags": True,
    "captions.dropout": 0.2,
    "concepts.0.class_prompt": "a photo of a star",
    "concepts.0.num_class_images_per": 1,
    "concepts.0.class_infer_steps": 2,
    "intervals.num_train_epochs": 5,
    "intervals.save_preview_every": 0,
    "intervals.save_state_every": 1,
    "previews.count": 0,
    "batching.train_batch_size": 2,
    "batching.gradient_accumulation_steps": 2,
    "tuning.text_encoder_ratio": 0.6,
    "tuning.use_ema": True,
    "learning.scheduler": "cosine",
    "saving.half_model": False,
}
METHODS: dict[str, dict[str, Any]] = {
    "full": {"general.method": "full", "learning.learning_rate": 1e-4},
    "lora": {"general.method": "lora", "lora.dropout": 0.2, "learning.lora_learning_rate": 1e-3},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    made = Folders(tmp_path_factory.mktemp("resume"))
    project.create(made, "star", MINIATURE)
    return made


def new_run(folders: Folders, method: str, **more: Any) -> Job:
    settings = parse({**SHARED, **METHODS[method], **more})
    return launcher.new_run(folders, project.open_project(folders, "star"), settings)


def output(job: Job) -> dict[str, torch.Tensor]:
    return load_file(next(event["path"] for event in reversed(job.events()[0]) if event["event"] == "saved"))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("method", METHODS)
def test_pausing_at_any_step_changes_no_bit(folders: Folders, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = new_run(folders, method)
    assert worker.run(whole) == "done"
    stopped = new_run(folders, method)
    for step in (2, 5, 6):  # while the text encoder learns, at its end, and once more
        monkeypatch.setattr(
            worker.RunHooks, "requests", lambda hooks, at=step: {"pause"} if hooks.session.step == at else set()
        )
        assert worker.run(stopped) == "paused"
    monkeypatch.undo()
    assert worker.run(stopped) == "done"
    assert [e["step"] for e in stopped.events()[0] if e["event"] == "resumed"] == [2, 5, 6]
    assert same(output(whole), output(stopped))
    assert not stopped.state.exists()
    other = new_run(folders, method, **{"general.seed": 1})
    assert worker.run(other) == "done"
    assert not same(output(whole), output(other))


@pytest.mark.thorough
def test_a_killed_engine_is_seen_as_lost_and_goes_on(folders: Folders, dreambooth: Run) -> None:
    longer = {"intervals.num_train_epochs": 25, "batching.gradient_accumulation_steps": 1}
    whole, killed = (new_run(folders, "lora", **longer) for _ in range(2))
    assert worker.run(whole) == "done"
    process = launcher.start(killed, Path(sys.executable))
    wait_for(killed, "state")
    launcher.kill(killed)
    process.wait()
    assert killed.status() == "lost"
    said = dreambooth("resume", killed.name, "--data", folders.models)
    assert (said.code, said.answer["status"]) == (0, "done"), said.errors
    assert any(event["event"] == "resumed" for event in killed.events()[0])
    assert same(output(whole), output(killed))


@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl-C to a console, which tests do not have")
def test_ctrl_c_pauses_and_stop_keeps_what_was_learned(folders: Folders, dreambooth: Run) -> None:
    flags = [
        f"--{key}={value}" for key, value in {**SHARED, **METHODS["lora"], "intervals.num_train_epochs": 2000}.items()
    ]
    variables = {**os.environ, "DREAMBOOTH_ENGINE_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "dreambooth", "train", "star", "--data", str(folders.models), *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # Jobs in a shell's background inherit an ignored Ctrl-C, which Python then leaves ignored.
    listen = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    with subprocess.Popen(command, cwd=ROOT, env=variables, preexec_fn=listen, **pipes) as process:
        deadline = time.monotonic() + 60
        job = None
        while not (job and job.progress()) and time.monotonic() < deadline:
            there = job_list.runs(project.open_project(folders, "star"))
            job = there[-1] if there and there[-1].settings()["intervals.num_train_epochs"] == 2000 else None
            time.sleep(0.1)
        assert job
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=240)
    assert process.returncode == 3  # nothing was written yet
    assert b"is paused" in out
    assert job.status() == "paused"
    assert dreambooth("pause", job.name, "--data", folders.models).code == 2
    process2 = launcher.start(job, Path(sys.executable))
    while not job.is_alive():  # stopped before it has imported anything it goes on to where its result is written
        assert process2.poll() is None
        time.sleep(0.01)
    assert dreambooth("stop", job.name, "--data", folders.models).code == 0
    assert process2.wait(240) == 0
    assert job.status() == "stopped"
    assert output(job)
    assert dreambooth("resume", job.name, "--data", folders.models).code == 2


def test_a_start_that_came_too_late_spoils_no_pause(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    job, tend = new_run(folders, "lora"), worker.RunHooks.tend_states

    def asked(own: worker.RunHooks) -> bool:
        job.request("start")
        job.request("pause")
        return tend(own)

    monkeypatch.setattr(worker.RunHooks, "tend_states", asked)
    assert worker.run(job) == "paused"
    assert job.states() == [1]


def test_discarding_keeps_nothing(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    job = new_run(folders, "lora")
    monkeypatch.setattr(worker.RunHooks, "requests", lambda hooks: {"discard"} if hooks.session.step == 3 else set())
    before = set(folders.loras.iterdir())
    assert worker.run(job) == "discarded"
    assert set(folders.loras.iterdir()) == before
    assert not job.state.exists()


def test_two_engines_never_work_on_one_run(folders: Folders) -> None:
    job = new_run(folders, "lora", **{"intervals.num_train_epochs": 2000})
    first = launcher.start(job, Path(sys.executable))
    wait_for(job, "started")
    second = subprocess.run([sys.executable, "-m", "dreambooth.engine", str(job.folder)], cwd=ROOT, capture_output=True)
    assert second.returncode == 2
    assert b"another engine" in second.stderr
    job.request("discard")
    assert first.wait(240) == 0


def wait_for(job: Job, event: str) -> None:
    deadline = time.monotonic() + 90
    while not any(e["event"] == event for e in job.events()[0]):
        assert time.monotonic() < deadline, job.log.read_text()
        time.sleep(0.05)
