"""What the card's proofs share. Each is done on the CPU too, by the same lines, so that it is known to work where
there is no card."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dreambooth.core.job_folder import Job
from dreambooth.core.project import Project
from dreambooth.engine.training import step_metrics
from tests.engine.conftest import fresh_accelerator as fresh_accelerator
from tests.engine.runs import tiny_project, told, train

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the card is first used; tuning.deterministic

Device = torch.device


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """Where a run works. On a machine with a card, a run that is to work on the CPU does not see it."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no NVIDIA card here")
    if request.param == "cpu":
        without_card(monkeypatch)
    yield Device(request.param)
    torch.use_deterministic_algorithms(False)
    if request.param == "cuda":
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.empty_cache()


def without_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="session")
def projects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Project]:
    folder = tmp_path_factory.mktemp("gpu")
    return {family: tiny_project(folder, family) for family in ("sd1", "sdxl")}


def losses(made: Project, **changes: Any) -> list[float]:
    """The loss of each step of a run."""
    return [event["loss"] for event in told(reported(made, **changes), "step")]


def reported(made: Project, **changes: Any) -> Job:
    """A run that reports each step.

    At 64 pixels the innermost blocks of the tiny SD 1 have one pixel, so that its norms make anything of a rounding.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_metrics, "REPORT_SECONDS", -1.0)
        every = {
            "batching.train_batch_size": 1,
            "intervals.save_state_every": 0,
            "general.seed": 3,
            "general.resolution": 128,
        }
        return train(made, **{**every, **changes})


def pixels(paths: list[Path]) -> Any:
    """Pictures as numbers from 0 to 255, (pictures, height, width, 3)."""
    import numpy as np
    from PIL import Image

    return np.stack([np.asarray(Image.open(path).convert("RGB"), dtype=np.int16) for path in paths])
