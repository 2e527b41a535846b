"""A row as a real run of the engine: whole, paused half way, and gone on with; with what is to be seen of each."""

from __future__ import annotations

import math
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import Tensor

from dreambooth.core import schedules
from dreambooth.core.job_folder import Ending, Job
from dreambooth.core.settings import learning_rate
from dreambooth.engine import worker
from dreambooth.engine.training import loop, step_metrics, traced_step
from dreambooth.engine.training.loop import Hooks
from dreambooth.engine.training.session import Session
from tests.engine.runs import saved, told

MOST_SECONDS = 120
LOADING = "loading the model"


@dataclass
class Done:
    """What a run has left."""

    job: Job
    steps: int = 0
    ending: Ending | None = None
    weights: dict[str, Tensor] = field(default_factory=dict)
    resting: list[str] = field(default_factory=list)  # parts whose weights did not move, though they should


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are traced early enough for so short a run, each is reported, and nobody rests."""
    monkeypatch.setattr(traced_step, "EAGER_BATCHES", 1)
    monkeypatch.setattr(traced_step, "MIN_REMAINING_BATCHES", 1)
    monkeypatch.setattr(step_metrics, "REPORT_SECONDS", -1.0)
    monkeypatch.setattr(loop, "_pause", lambda seconds, hooks: 0.0)


def run(job: Job, *, pause_at: int | None = None) -> Done:
    """Does a run, or goes on with it, to its end or to a pause before a step."""
    done = Done(job)

    def train(session: Session, hooks: Hooks) -> Ending:
        before = {name: weight.detach().clone() for name, weight in session.trained.named().items()}
        ending = loop.train(session, hooks)
        done.weights = {name: weight.detach().clone() for name, weight in session.trained.named().items()}
        done.steps, done.resting = session.budget.steps, _resting(session, before, done.weights)
        return ending

    def asked(hooks: worker.RunHooks) -> set[str]:
        return {"pause"} if hooks.session.step == pause_at else set()

    AcceleratorState._reset_state(reset_partial_state=True)
    with mock.patch.object(worker, "train", train), mock.patch.object(worker.RunHooks, "requests", asked), _in_time():
        done.ending = worker.run(job)
    return done


def copy(job: Job) -> Job:
    """A paused run once more, to go on with in another way."""
    numbers = (int(path.name) for path in job.folder.parent.iterdir() if path.name.isdigit())
    return Job(Path(shutil.copytree(job.folder, job.folder.with_name(f"{max(numbers) + 1:04}"))))


def tensors(path: Path) -> dict[str, Tensor]:
    """What is in a file that a run has written."""
    if path.suffix == ".safetensors":
        return load_file(path)
    content: Any = torch.load(path, weights_only=True)
    return dict(content["state_dict"])


def check_sound(done: Done) -> dict[str, Tensor]:
    """Holds that a run which has ended has learned something, and no nonsense. Returns what it has written last."""
    job = done.job
    assert done.ending == "done"
    losses = [event[name] for event in told(job, "step") for name in ("loss", "subject_loss", "prior_loss")]
    assert losses
    assert all(map(math.isfinite, losses))
    for event in told(job, "preview"):
        assert all(Path(path).is_file() for path in (*event["paths"], event["sheet"]))
    warnings = [(event.get("where"), event["text"]) for event in told(job, "warning")]
    assert not [one for one in warnings if one[0] in ("tuning.trace_steps", "tuning.nonfinite_steps")], warnings
    assert not [one for one in warnings if "half the learning rate" in one[1]], warnings
    written = saved(job)
    assert written[-1].is_file()
    for path in filter(Path.is_file, written):  # copies of a run share its results, and one may have removed some
        found = tensors(path)
        assert found
        assert all(torch.isfinite(tensor.float()).all() for tensor in found.values() if tensor.is_floating_point())
    assert not job.state.exists()
    return found


def _resting(session: Session, before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    """The parts that were to learn and whose weights are all as they were."""
    budget, found = session.budget, []
    parts = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    for part in session.trained.parts:
        most = budget.images if part == "unet" else schedules.text_images(session.settings, budget)
        seen = [budget.images_seen(step) for step in range(budget.steps)]
        rate = learning_rate(session.settings, part)
        moves = [schedules.rate_factor(session.settings.learning, one / budget.images) for one in seen if one < most]
        if rate and any(moves) and part not in parts:
            found.append(part)
    return found


@contextmanager
def _in_time() -> Iterator[None]:
    def late(*_: Any) -> None:
        raise TimeoutError(f"the run takes longer than {MOST_SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(MOST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
