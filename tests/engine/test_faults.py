"""A run that is killed at any moment goes on to the very weights of one that nobody killed."""

from __future__ import annotations

import collections
import os
import random
import signal
import time
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dreambooth.core.job_folder import Job
from dreambooth.core.project import Project
from dreambooth.engine import worker
from tests.engine.runs import new_run, output, same, saved, tiny_project, told

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="a process that has used a GPU cannot be forked"),
]

EVERYTHING: dict[str, Any] = {  # that a state holds, and every phase of a run
    "intervals.num_train_epochs": 6,
    "intervals.save_state_every_steps": 1,
    "intervals.save_model_every_steps": 4,
    "intervals.states_kept": 2,
    "concepts.0.class_prompt": "a photo of a star",
    "concepts.0.num_class_images_per": 1,
    "concepts.0.class_infer_steps": 1,
    "tuning.text_encoder_ratio": 0.6,
    "tuning.use_ema": True,
    "captions.dropout": 0.2,
    "previews.count": 1,
    "previews.steps": 1,
}


@pytest.fixture(scope="module")
def star(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return tiny_project(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize(
    "kills", [3, pytest.param(200, marks=pytest.mark.faults)], ids=["some kills", "two hundred kills"]
)
def test_a_run_that_is_killed_at_any_moment_ends_as_if_it_had_not_been(star: Project, kills: int) -> None:
    began = time.monotonic()
    whole = new_run(star, **EVERYTHING)
    assert finished(start(whole))
    seconds = time.monotonic() - began
    chance = random.Random(kills)
    moments: collections.Counter[str] = collections.Counter()
    while sum(moments.values()) < kills:
        for moment in killed_until_done(job := new_run(star, **EVERYTHING), chance, seconds):
            moments[moment] += 1
            print(sum(moments.values()), job.name, moment, flush=True)
        assert same(output(job), output(whole)), job.folder
        assert {event["images"] for event in told(job, "saved")} == {event["images"] for event in told(whole, "saved")}
        assert not job.state.exists()
        assert not list(saved(job)[0].parent.glob(".*.partial.*"))
    print(dict(moments))


def killed_until_done(job: Job, chance: random.Random, seconds: float) -> Iterator[str]:
    """Starts the run until it is done; the phase that it was in at each kill."""
    while True:
        process = start(job)
        deadline = time.monotonic() + chance.uniform(0, seconds)
        while time.monotonic() < deadline:
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                assert status == 0, job.log.read_text()
                return
            time.sleep(0.002)
        os.kill(process, signal.SIGKILL)
        if finished(process):
            return
        yield phase(job)


def phase(job: Job) -> str:
    last = next((event for event in reversed(job.events()[0]) if event["event"] not in ("warning", "picture")), {})
    return str(last.get("name") or last.get("event", "beginning"))


def start(job: Job) -> int:
    """The worker in a process of its own, which need not import anything any more."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        log = os.open(job.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        with job.hold():  # type: ignore[union-attr]
            code = 0 if worker.run(job) == "done" else 1
    except BaseException:  # noqa: BLE001  (of a fork: it must not go on as the test)
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def finished(process: int) -> bool:
    return os.waitpid(process, 0)[1] == 0
