"""Traced steps whose weights change in the backward pass: the same changes at the same places, to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from torch import Tensor, nn

from dreambooth.core.install_paths import SUBJECT_PICTURES
from dreambooth.core.project import Project
from dreambooth.engine import worker
from dreambooth.engine.bench.live_tensors import Live
from dreambooth.engine.tracing.program import NotTraceable, Program, record
from dreambooth.engine.tracing.recorder import Recorder, call
from dreambooth.engine.training import fused_backward, loss, traced_step
from dreambooth.engine.training.fused_backward import FusedBackward, WeightGradient
from dreambooth.engine.training.loss import Batch
from tests.engine.runs import new_run, output, same, tiny_project, told, train

STEPS = {"intervals.max_train_steps": 5, "batching.train_batch_size": 1, "memory.step_in_backward": True}
BEFORE = 1
TRACED = 5 - BEFORE - 2  # two are needed to write down and to check
OFF = {"tuning.trace_steps": False}
STREAMED = {"memory.unet_weights": "streamed", "batching.gradient_checkpointing": True}
BF16 = {"memory.bf16_weights": True, "tuning.mixed_precision": "bf16"}


@pytest.fixture(autouse=True)
def _soon_and_in_small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traced_step, "EAGER_BATCHES", BEFORE)
    monkeypatch.setattr(traced_step, "MIN_REMAINING_BATCHES", 1)
    monkeypatch.setattr(fused_backward, "PORTION_BYTES", 100_000)


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Project]:
    folder = tmp_path_factory.mktemp("traced-in-backward")
    return {family: tiny_project(folder, family) for family in ("sd1", "sdxl")}


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Program]]:
    """Which programs were run, in turn."""
    done: list[Program] = []
    plain = Program.__call__
    monkeypatch.setattr(Program, "__call__", lambda self, given: done.append(self) or plain(self, given))
    yield done


# ---- calls


def test_a_call_is_made_again_with_the_tensors_of_then() -> None:
    seen: list[Tensor] = []

    def keep(one: Tensor, other: Tensor) -> None:
        seen.append(one + other.sum())  # which is not written down

    def computation(given: list[Tensor]) -> list[Tensor]:
        made = given[0] * 2
        call(keep, made, weight)
        return [made.exp()]

    weight = torch.ones(2)
    _, program = record(computation, [torch.zeros(3)])
    assert program.length == 3
    weight.fill_(5)
    program([torch.ones(3)])
    assert [one.tolist() for one in seen] == [[2.0] * 3, [12.0] * 3]


def test_what_a_call_returns_is_made_anew_each_time() -> None:
    count = [0]

    def counted() -> list[Tensor]:
        count[0] += 1
        return [torch.full((2,), float(count[0])), torch.ones(2)]

    def computation(given: list[Tensor]) -> list[Tensor]:
        first, second = call(counted) or []
        return [given[0] * first[:1] + second]

    outputs, program = record(computation, [torch.ones(2)])
    assert outputs[0].tolist() == [2, 2]
    assert program([torch.ones(2)])[0].tolist() == [3, 3]


def test_a_call_that_fails_fails_again_and_leaves_the_record_whole() -> None:
    def fails() -> None:
        raise NotTraceable("not now")

    with pytest.raises(NotTraceable, match="not now"):
        record(lambda given: [given[0], *(call(fails) or [])], [torch.ones(2)])


def test_a_program_holds_no_more_of_gradients_than_autograd() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(256, 256) for _ in range(8)]
    given = torch.randn(16, 256)

    def taken(gradient: Tensor) -> None:
        gradient.mul_(0)

    def step(given: list[Tensor]) -> list[Tensor]:
        x = given[0]
        for layer in layers:
            x = layer(x)
        loss = x.square().mean()
        loss.backward()
        return [loss.detach()]

    def hand_over(weight: Tensor) -> None:
        assert weight.grad is not None
        call(taken, weight.grad)
        weight.grad = None

    for layer in layers:
        for weight in layer.parameters():
            weight.register_post_accumulate_grad_hook(hand_over)
    _, program = record(step, [given])
    peaks = []
    for function in (step, program):
        with Live(held=[given, *(weight for layer in layers for weight in layer.parameters())]) as live:
            function([given])
        peaks.append(live.peak)
    assert peaks[1] <= peaks[0] < 4 * 256 * 256 * 4


# ---- runs

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "clipped": ("sdxl", {"optimizer.max_grad_norm": 0.01}),
    "8-bit states, text": ("sd1", {"optimizer.name": "adamw_8bit", "tuning.text_encoder_ratio": 1.0}),
    "bf16": ("sd1", {**BF16, "tuning.use_ema": True}),
    "streamed": ("sd1", STREAMED),
    "streamed, bf16": ("sd1", {**STREAMED, **BF16, "optimizer.name": "came"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_learned_is_the_same_to_the_bit(
    kind: str, projects: dict[str, Project], programs: list[Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the weights change in the same portions."""
    family, changes = KINDS[kind]
    results, portions, plain = [], list[tuple[int, list[torch.Size]]](), FusedBackward._apply_portion

    def watched(self: FusedBackward, number: int, some: list[WeightGradient]) -> None:
        portions.append((number, [weight.shape for weight, _ in some]))
        plain(self, number, some)

    monkeypatch.setattr(FusedBackward, "_apply_portion", watched)
    for more in (OFF, {}):
        job = train(projects[family], **{**STEPS, **changes, **more})
        assert not told(job, "warning")
        results.append((output(job), portions.copy()))
        assert len(programs) == (0 if more else TRACED + 1)
        portions.clear()
    assert same(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]
    assert len(results[0][1]) > 2 * 5


@pytest.mark.thorough
def test_pictures_of_several_shapes_have_a_program_each(
    projects: dict[str, Project], programs: list[Program], tmp_path: Path
) -> None:
    for n, path in enumerate(sorted(SUBJECT_PICTURES.glob("*.png"))[:4]):
        Image.open(path).convert("RGB").resize((128, 128) if n % 2 else (256, 64)).save(tmp_path / f"{n}.png")
    changes: dict[str, Any] = {
        **STEPS,
        "concepts.0.instance_data_dir": str(tmp_path),
        "general.resolution": 128,
        "intervals.max_train_steps": 8,
    }
    results = [output(train(projects["sd1"], **changes, **more)) for more in (OFF, {})]
    assert len(set(programs)) == 2
    assert same(*results)


def test_a_step_whose_loss_is_no_number_changes_nothing(
    projects: dict[str, Project], programs: list[Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = loss.make_batch

    def spoilt(session: Any, *given: Any, **more: Any) -> Batch:
        batch = plain(session, *given, **more)
        if session.step == 3:
            batch.x_t.fill_(float("nan"))
        return batch

    monkeypatch.setattr(loss, "make_batch", spoilt)
    results = []
    for more in (OFF, {}):
        job = train(projects["sd1"], **STEPS, **more)
        assert [event["text"] for event in told(job, "warning") if "step 4" in event["text"]]
        results.append(output(job))
    assert len(programs) == TRACED + 1
    assert same(*results)


@pytest.mark.parametrize("wrong", ["a gradient", "an error"])
def test_a_program_that_gives_something_else_has_changed_nothing(
    wrong: str, projects: dict[str, Project], programs: list[Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = output(train(projects["sd1"], **STEPS, **OFF))
    arrived, count = FusedBackward._on_gradient, [0]

    def spoilt(self: FusedBackward, weight: nn.Parameter, number: int, gradient: Tensor) -> None:
        if programs:  # the first is run before PyTorch does the same batch
            count[0] += 1
            if count[0] == 20 and wrong == "an error":
                raise RuntimeError("This device has another opinion.")
            if count[0] == 20:
                gradient.mul_(1.5)
        arrived(self, weight, number, gradient)

    monkeypatch.setattr(FusedBackward, "_on_gradient", spoilt)
    job = train(projects["sd1"], **STEPS)
    (warning,) = told(job, "warning")
    assert warning["where"] == "tuning.trace_steps"
    assert len(programs) == 1
    assert same(wanted, output(job))


def test_a_pass_that_cannot_be_written_down_has_changed_nothing(
    projects: dict[str, Project], programs: list[Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it is found out in the middle of its backward pass."""
    wanted = output(train(projects["sd1"], **STEPS, **OFF))
    plain, count = Recorder.call, [0]

    def fails(self: Recorder, *given: Any) -> Any:
        count[0] += 1
        if count[0] == 20:
            raise NotTraceable("Something depends on values.")
        return plain(self, *given)

    monkeypatch.setattr(Recorder, "call", fails)
    job = train(projects["sd1"], **STEPS)
    assert count[0] == 20
    assert not programs
    assert not told(job, "warning")
    assert same(wanted, output(job))


@pytest.mark.thorough
def test_a_run_that_paused_ends_as_one_that_did_not(
    projects: dict[str, Project], programs: list[Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {**STEPS, **STREAMED, "intervals.max_train_steps": 8}
    wanted = output(train(projects["sd1"], **changes))
    at_once = len(programs)
    job = new_run(projects["sd1"], **changes)
    with monkeypatch.context() as patched:
        asked = lambda hooks: {"pause"} if hooks.session.step == 4 else set()  # noqa: E731
        patched.setattr(worker.RunHooks, "requests", asked)
        AcceleratorState._reset_state(reset_partial_state=True)
        assert worker.run(job) == "paused"
    AcceleratorState._reset_state(reset_partial_state=True)
    assert worker.run(job) == "done"
    assert len(programs) == 2 * at_once - BEFORE - 1
    assert same(wanted, output(job))
