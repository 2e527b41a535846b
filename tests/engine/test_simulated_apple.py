"""The whole engine on an Apple GPU that is simulated: nothing of it asks for what PyTorch refuses there."""

from __future__ import annotations

import re

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

from dreambooth.core.errors import UserError
from dreambooth.core.project import Folders, Project
from dreambooth.engine import families, generate, hardware, out_of_memory, selfcheck, worker
from dreambooth.engine.drawing import sampling
from dreambooth.engine.drawing.sampling_choice import Sampling
from dreambooth.engine.training import nonfinite_steps, precision, traced_step
from dreambooth.service import environment, launcher, short_jobs
from tests.conftest import ROOT
from tests.engine.runs import LORA, saved, tiny_project, told, train
from tests.engine.simulated_apple import SimulatedAppleGpu, has_kernel
from tests.engine.simulated_card import BYTES, simulated_card
from tests.engine.test_export_of_states import paused
from tests.engine.test_simulated_card import OF_SDXL, RUNS


def test_it_plays_an_apple_gpu() -> None:
    with simulated_card(SimulatedAppleGpu) as card:
        there, here = torch.ones(3, device="mps"), torch.ones(3)
        assert (there * 2).device.type == "mps" and there.is_mps and not here.is_mps
        with pytest.raises(TypeError, match="float64"):
            there.double()
        with pytest.raises(TypeError, match="float64"):
            torch.zeros(2, dtype=torch.float64, device="mps")
        for late in (lambda: here.to("mps", non_blocking=True), lambda: here.copy_(there, non_blocking=True)):
            with pytest.raises(AssertionError, match="nobody has waited for"):
                late()
        torch.heaviside(there, there)
        assert card.lacking == {"heaviside"}
        with pytest.raises(RuntimeError, match="'mps' device type for generator"):
            torch.randn(3, device="mps", generator=torch.Generator())
    assert has_kernel("add.Tensor") and has_kernel("convolution_backward") and not has_kernel("heaviside")


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Project]:
    folder = tmp_path_factory.mktemp("apple")
    return {family: tiny_project(folder, family) for family in ("sd1", "sdxl")}


QUICK = ("full", "oft", "kept by prediction", "streamed, full", "previews and class pictures")
LACKING = {"oft": {"linalg_lu_solve"}}  # of its backward pass


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        *(("sd1", kind) for kind in QUICK),
        ("sdxl", "lora, bf16"),
        *(
            pytest.param("sdxl" if kind == OF_SDXL else "sd1", kind, marks=pytest.mark.pairs)
            for kind in sorted(RUNS.keys() - {*QUICK, "full, fp16", "traced", "traced, streamed"})
        ),
    ],
)
def test_a_run(projects: dict[str, Project], family: str, kind: str) -> None:
    with simulated_card(SimulatedAppleGpu) as card:
        job = train(projects[family], **{**RUNS[kind], "intervals.num_train_epochs": 1})
    assert card.operations > 1000
    assert not told(job, "warning"), "among others, that a record gives something else"
    assert told(job, "step")[-1]["memory_bytes"] == 2 * 2**30
    assert card.lacking == LACKING.get(kind, set())
    assert environment.engine_variables()["PYTORCH_ENABLE_MPS_FALLBACK"] == "1", "the CPU does those"


def test_nothing_is_copied_that_nobody_waits_for() -> None:
    """Where tensors come to a device they come by `hardware.brought`."""
    files = [file for file in (ROOT / "dreambooth" / "engine").rglob("*.py") if "bench" not in file.parts]
    found = [file.name for file in files if re.search(r"\.to\([^\n]*non_blocking", file.read_text(encoding="utf-8"))]
    assert found == ["hardware.py"]


@pytest.mark.thorough
def test_a_run_is_traced(projects: dict[str, Project], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traced_step, "MIN_REMAINING_BATCHES", 1)
    with simulated_card(SimulatedAppleGpu) as card:
        job = train(projects["sd1"], **LORA, **{"intervals.num_train_epochs": 5, "lora.dropout": 0.5})
    assert not told(job, "warning"), "among others, that a record gives something else"
    assert card.asked_for_states == 2, "random numbers are put back after each of two trials"
    assert not card.lacking


def test_a_run_goes_on_and_its_result_is_drawn(projects: dict[str, Project], monkeypatch: pytest.MonkeyPatch) -> None:
    made = projects["sd1"]
    folders = Folders(made.folder.parents[1])
    with simulated_card(SimulatedAppleGpu) as card:
        job = paused(made, monkeypatch, **LORA, **{"intervals.max_train_steps": 4, "tuning.use_ema": True})
        AcceleratorState._reset_state(reset_partial_state=True)
        assert worker.run(job) == "done"
        before = card.operations
        chosen, fields = short_jobs.drawing(made, {"prompt": "a star", "steps": 2, "weights": str(saved(job)[-1])})
        AcceleratorState._reset_state(reset_partial_state=True)
        assert len(generate.run(launcher.new_errand(folders, made, "generate", chosen, **fields))["pictures"]) == 1
        assert card.operations > before


SHOWN = ("euler", "heun", "kdpm2_a", "lms", "deis", "dpm++_sde")  # each with numbers of its own


@pytest.mark.parametrize(
    "scheduler",
    [pytest.param(one, marks=() if one in SHOWN else pytest.mark.pairs) for one in sampling.SCHEDULERS],
)
def test_each_scheduler_draws(scheduler: str, projects: dict[str, Project]) -> None:
    with simulated_card(SimulatedAppleGpu):
        model = families.load_file(projects["sd1"].source)
        model.to(torch.device("mps", 0))
        choice = Sampling(64, 64, steps=4, scheduler=scheduler)
        assert len(sampling.draw(model, ["a star"], [1], choice)) == 1


def test_the_self_check_knows_it_and_what_does_not_work() -> None:
    with simulated_card(SimulatedAppleGpu):
        report = selfcheck.report()
    assert (report["device"], report["device_name"], report["memory_bytes"]) == ("mps", "the Apple GPU", BYTES)
    faults = report["faults"]
    assert faults["memory.attention"].keys() == {"flash", "xformers"}
    plain = {"adamw", "lion", "adafactor", "came", "prodigy", "adamw_schedule_free"}
    assert not plain & faults["optimizer.name"].keys()
    assert {"paged_adamw_8bit", "paged_lion_8bit"} <= faults["optimizer.name"].keys()


def test_precision() -> None:
    with simulated_card(SimulatedAppleGpu):
        for wanted, chosen in {"auto": "bf16", "bf16": "bf16", "no": "no"}.items():
            AcceleratorState._reset_state(reset_partial_state=True)
            made = precision.accelerator(wanted)
            assert (made.device.type, made.mixed_precision, made.scaler) == ("mps", chosen, None)
        with pytest.raises(UserError, match="for fp16 it needs a card of NVIDIA or AMD; choose auto, no or bf16"):
            precision.accelerator("fp16")
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_step_that_is_no_number_is_left_out() -> None:
    with simulated_card(SimulatedAppleGpu):
        weight = nn.Parameter(torch.ones(4, device="mps"))
        optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0, fused=True)
        weight.grad = torch.full_like(weight, float("nan"))
        with nonfinite_steps.skipped_if(optimizer, torch.ones((), device="mps", dtype=torch.bool)):
            optimizer.step()
        assert weight.tolist() == [1, 1, 1, 1]


def test_memory() -> None:
    """2 GiB are held, 1 GiB of which is in use, and Metal advises at most so many."""
    with simulated_card(SimulatedAppleGpu):
        device = torch.device("mps")
        assert 2**30 <= hardware.free_bytes(device) <= BYTES - 2**30
        assert hardware.memory_bytes(device) == BYTES


@pytest.mark.parametrize(
    ("said", "needed"),
    [
        (
            "MPS backend out of memory (MPS allocated: 7.23 GB, other allocations: 1.54 GB, max allowed: 9.07 GB). "
            "Tried to allocate 896.00 MB on private pool. Use PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 to disable ...",
            "896.00 MB more were needed, of 9.07 GB that PyTorch may take",
        ),
        ("Invalid buffer size: 24.00 GiB", "24.00 GiB were needed in one piece"),
    ],
)
def test_too_little_memory_is_known_for_what_it_is(said: str, needed: str) -> None:
    assert out_of_memory.is_out_of_memory(RuntimeError(said))
    assert out_of_memory.requested(RuntimeError(said)) == needed
