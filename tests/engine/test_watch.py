"""What the benchmark sees of a training or drawing process: the same instrument for us and for others."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel

from dreambooth.engine.bench.drawing_run import DrawingWatch, TrainingBegan
from dreambooth.engine.bench.watch import WARM_STEPS, Watch, peak_bytes
from dreambooth.engine.drawing.prediction import Predictions
from tests.conftest import ROOT
from tests.engine.simulated_card import simulated_card

STEPS = WARM_STEPS + 3


@pytest.fixture(autouse=True)
def _libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a watch takes hold of is given back."""
    monkeypatch.setattr(UNet2DConditionModel, "forward", lambda self, sample: sample)
    monkeypatch.setattr(Accelerator, "backward", lambda self, loss: time.sleep(0.01))
    optimizer = importlib.import_module("torch.optim.optimizer")
    monkeypatch.setattr(optimizer, "register_optimizer_step_post_hook", lambda hook: None)


def unet() -> UNet2DConditionModel:
    return UNet2DConditionModel.__new__(UNet2DConditionModel)


def test_steps_count_from_the_first_that_trains() -> None:
    """A training may try its optimizer before: that is no step, and stops no clock."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(3, 4)), torch.zeros(9)])
    watch = Watch(STEPS, time.time() - 5)
    watch.install()
    watch.step_ended(optimizer)
    assert watch.ends == []
    for n in range(STEPS):
        UNet2DConditionModel.forward(unet(), torch.zeros(1))
        Accelerator.backward(None, torch.tensor(float(n)))  # type: ignore[arg-type]
        watch.step_ended(optimizer)
    found = watch.found()
    assert found["losses"] == [float(n) for n in range(min(8, STEPS))]
    assert 5 < found["first_step_seconds"] < 15
    assert found["step_seconds"] >= 0.01
    assert found["trained"] == 12, "what has a gradient"
    assert 0.01 <= found["model_seconds"] <= found["mean_step_seconds"]
    assert found["step_cpu_seconds"] < 0.01, "sleep is no work of the CPU"


def test_drawing_is_timed_from_the_unets_first_work_to_the_last_file(tmp_path: Path) -> None:
    watch = DrawingWatch()
    watch.install()
    drawing = unet()
    drawing.__dict__["training"] = False
    for _ in range(2 * 5):
        UNet2DConditionModel.forward(drawing, torch.zeros(2 * 3))  # three pictures, with and without a prompt
    paths = [tmp_path / f"{n}.png" for n in range(6)]
    for n, path in enumerate(paths):
        path.touch()
        os.utime(path, (0, watch.began + n))
    found = watch.found(paths, watch.began - 2)
    assert (found["count"], found["steps"], found["batch"]) == (6, 5, 3)
    assert found["seconds"] == pytest.approx(5, abs=0.01)
    assert found["first_picture_seconds"] == pytest.approx(2, abs=0.01)
    drawing.__dict__["training"] = True
    with pytest.raises(TrainingBegan):
        UNet2DConditionModel.forward(drawing, torch.zeros(1))


def test_our_predictions_count_also_where_they_are_made_from_their_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nothing of diffusers' UNet is called."""
    monkeypatch.setattr(Predictions, "__call__", lambda self, x, *_: x)
    watch = DrawingWatch()
    watch.install_in_ours()
    for _ in range(5):
        Predictions.__new__(Predictions)(torch.zeros(4), None, None, None)
    assert (watch.predictions, watch.most, watch.began > 0) == (20, 4, True)


def test_nothing_is_timed_where_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event would become a part of the graph, and could not be asked for its time."""
    watch = Watch(STEPS, time.time())
    watched = watch.timed(watch.counted(lambda: "done", "programs"))
    with simulated_card():
        for is_capturing in (True, False):
            monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda now=is_capturing: now)
            assert watched() == "done"
            assert len(watch.spans) == (not is_capturing)
    assert watch.programs == 2


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system counts")
def test_memory_is_that_of_the_process_alone() -> None:
    """Not that of the one which started it."""
    held = torch.ones(2**27)  # 512 MiB
    said = subprocess.run(
        [sys.executable, "-c", "from dreambooth.engine.bench import watch; print(watch.peak_bytes())"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert 2**20 < int(said.stdout) < 2**28
    assert peak_bytes() > held.nbytes
