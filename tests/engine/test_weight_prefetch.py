"""Streamed weights that are fetched while the block before computes, on a device that is simulated: whatever is done
when, the same is learned; and where a wait is left out, it shows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from dreambooth.core.job_folder import Job
from dreambooth.core.project import Project
from dreambooth.engine.families import unet_weights, weight_prefetch
from dreambooth.engine.families.weight_prefetch import Prefetcher
from dreambooth.engine.tracing.program import Program
from dreambooth.engine.training import fused_backward, traced_step
from tests.engine.runs import LORA, output, same, tiny_project, told, train
from tests.engine.simulated_streams import Early, Late

STREAMED: dict[str, Any] = {
    "memory.unet_weights": "streamed",
    "batching.gradient_checkpointing": True,
    "batching.train_batch_size": 1,
    "intervals.max_train_steps": 5,
}
KINDS: dict[str, dict[str, Any]] = {
    "lora": {**STREAMED, **LORA},
    "trained": {**STREAMED, "memory.step_in_backward": True},
}
UNTRACED = {"tuning.trace_steps": False}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _traced_soon_and_in_small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that of five steps the first is done by PyTorch, two are recorded and checked, and two done again."""
    monkeypatch.setattr(traced_step, "EAGER_BATCHES", 1)
    monkeypatch.setattr(traced_step, "MIN_REMAINING_BATCHES", 1)
    monkeypatch.setattr(fused_backward, "PORTION_BYTES", 100_000)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return tiny_project(tmp_path_factory.mktemp("fetching"))


@pytest.fixture(scope="module")
def wanted(made: Project) -> dict[str, dict[str, Tensor]]:
    """What is learned where each block's weights are fetched when its turn comes."""
    return {kind: output(train(made, **changes, **UNTRACED)) for kind, changes in KINDS.items()}


@contextmanager
def on(device: Any, *, checked: bool = True) -> Iterator[None]:
    """Within it there is such a device; without `checked` nobody looks at what was fetched first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weight_prefetch, "streams", lambda _: device)
        if not checked:
            patch.setattr(Prefetcher, "_check", lambda *_: None)
        yield


@pytest.mark.parametrize(("device", "kind"), [(Late, "lora"), (Late, "trained"), (Early, "trained")])
def test_the_same_is_learned_whenever_it_is_copied(
    device: Any, kind: str, made: Project, wanted: dict[str, dict[str, Tensor]]
) -> None:
    simulated = device()
    with on(simulated):
        job = train(made, **KINDS[kind])
    assert not told(job, "warning")
    assert is_same(wanted[kind], job)
    assert simulated.copied > 0
    if isinstance(simulated, Late):
        assert simulated.freed == 0
        assert not simulated.asked, "between two passes nothing is on its way"


def is_same(wanted: dict[str, Tensor], job: Job) -> bool:
    return same(wanted, output(job))


class NoJoin(Late):
    """Nobody waits for its copies."""

    is_broken = True

    def join(self) -> None:
        if not self.is_broken:
            super().join()
        self.asked.clear()


class NoFollow(Early):
    """It waits for nobody."""

    is_broken = True

    def follow(self) -> None:
        if not self.is_broken:
            super().follow()


@pytest.mark.parametrize("broken", [NoJoin, NoFollow])
def test_a_wait_that_is_left_out_shows(broken: Any, made: Project, wanted: dict[str, dict[str, Tensor]]) -> None:
    with on(broken(), checked=False):
        assert not is_same(wanted["trained"], train(made, **KINDS["trained"], **UNTRACED))


@pytest.mark.parametrize("broken", [NoJoin, NoFollow])
def test_so_in_a_step_that_is_done_again(
    broken: Any, made: Project, wanted: dict[str, dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its check does not find it."""
    device, plain = broken(), Program.__call__
    device.is_broken = False

    def run(program: Program, given: Any) -> Any:
        device.is_broken = True
        try:
            return plain(program, given)
        finally:
            device.is_broken = False

    monkeypatch.setattr(Program, "__call__", run)
    with on(device):
        job = train(made, **KINDS["trained"])
    assert told(job, "warning") or not is_same(wanted["trained"], job)


def test_what_was_fetched_wrongly_is_found(made: Project, wanted: dict[str, dict[str, Tensor]]) -> None:
    device = NoJoin()
    with on(device):
        job = train(made, **KINDS["trained"])
    (warning,) = told(job, "warning")
    assert weight_prefetch.DIFFERS.what in warning["text"]
    assert warning["where"] == "memory.unet_weights"
    assert is_same(wanted["trained"], job)


def test_a_block_computes_while_the_next_ones_weights_come(made: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """In PyTorch's own steps and in those that are done again from a record; never those of two blocks."""
    device, forward, during = Late(), BasicTransformerBlock.forward, list[int]()
    monkeypatch.setattr(
        BasicTransformerBlock,
        "forward",
        lambda *given, **more: during.append(len(device.asked)) or forward(*given, **more),
    )
    copied, run = list[int](), Program.__call__

    def counted(program: Program, given: Any) -> Any:
        before = device.copied
        outputs = run(program, given)
        copied.append(device.copied - before)
        return outputs

    monkeypatch.setattr(Program, "__call__", counted)
    largest = 0
    lay = unet_weights._store_block

    def laid(block: nn.Module, *given: Any) -> None:
        nonlocal largest
        largest = max(largest, len(list(unet_weights.large_weights(block))))
        lay(block, *given)

    monkeypatch.setattr(unet_weights, "_store_block", laid)
    with on(device):
        train(made, **KINDS["trained"])
    first_pass = during.index(next(count for count in during if count))
    assert 0 not in [count for n, count in enumerate(during[first_pass:]) if n % first_pass != first_pass - 1]
    assert len(copied) == 5 - traced_step.EAGER_BATCHES - 1
    assert len(set(copied)) == 1
    assert copied[0] > 0
    assert device.most <= largest


# ---- orders that change


def blocks(count: int) -> list[nn.Module]:
    return [nn.Linear(3, 3) for _ in range(count)]


def laid(device: Any, made: list[nn.Module]) -> Prefetcher:
    ahead = Prefetcher(device, CPU, lambda said: None)
    ahead.blocks.update({block: list(block.parameters()) for block in made})
    return ahead


def passed(ahead: Prefetcher, order: list[nn.Module]) -> list[bool]:
    """Whether each block's weights were there in its turn, and were right."""
    ahead.start_pass()
    found = []
    for block in order:
        fetched = ahead.before_block(block)
        found.append(fetched is not None)
        assert not fetched or all(torch.equal(one, weight) for one, weight in zip(fetched, block.parameters()))
    return found


def test_another_order_costs_only_the_gain() -> None:
    a, b, c = made = blocks(3)
    device = Late()
    ahead = laid(device, made)
    assert passed(ahead, [a, b, c, b]) == [False] * 4
    assert passed(ahead, [a, b, c, b]) == [True] * 4
    assert passed(ahead, [a, c, b]) == [True, False, False]
    assert passed(ahead, [a, c, b]) == [True] * 3
    assert passed(ahead, [a]) == [True], "which leaves another one on its way"
    assert passed(ahead, [a, b]) == [True, False]
    with torch.no_grad():
        assert passed(ahead, [c, a]) == [False] * 2, "without gradients it has an order of its own"
        assert passed(ahead, [c, a]) == [True] * 2
    assert passed(ahead, [a, b]) == [True] * 2
    assert device.freed == 0


def test_so_where_a_pass_is_given_up() -> None:
    a, b, c = made = blocks(3)
    device = Late()
    ahead = laid(device, made)
    passed(ahead, [a, b, c])
    ahead.start_pass()
    ahead.before_block(a)
    assert device.asked
    passed(ahead, [b, c])
    assert device.freed == 0


def test_what_nobody_waits_for_is_freed_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the simulated device shows what the rule is for."""
    a, b, c = made = blocks(3)
    device = Late()
    ahead = laid(device, made)
    passed(ahead, [a, b, c])
    ahead.start_pass()
    ahead.before_block(a)

    def forgets(self: Prefetcher) -> None:
        self._pending = []

    with monkeypatch.context() as patch:
        patch.setattr(Prefetcher, "_wait", forgets)
        ahead.before_block(c)
    device.join()
    assert device.freed > 0


@pytest.mark.parametrize("captures", [False, True])
def test_a_gpu_is_asked_for_both_waits(captures: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """But within a CUDA graph, where each copy is done in its turn."""
    asked: list[str] = []

    class Stream:
        def __init__(self, name: Any) -> None:
            self.name = name if isinstance(name, str) else "copying"

        def wait_stream(self, other: Stream) -> None:
            asked.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def stream(chosen: Stream | None) -> Iterator[None]:
        asked.append(f"on {chosen.name if chosen else 'computing'}")
        yield

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("computing"))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: captures)
    beside, place = weight_prefetch.CopyStream(CPU), torch.zeros(2)
    beside.follow()
    beside.copy(place, torch.ones(2))
    beside.join()
    waits = ["copying waits for computing", "on copying", "computing waits for copying"]
    assert asked == (["on computing"] if captures else waits)
    assert place.tolist() == [1, 1]


def test_without_a_second_line_of_work_nothing_is_fetched_ahead() -> None:
    assert weight_prefetch.streams(CPU) is None
