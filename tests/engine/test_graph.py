"""Steps as CUDA graphs. A graph is simulated on the CPU: it reads and writes at fixed places, as a real one does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import LOCK, SUBJECT_PICTURES
from dreambooth.core.project import Project
from dreambooth.core.settings import parse
from dreambooth.engine import out_of_memory, worker
from dreambooth.engine.tracing import graph
from dreambooth.engine.tracing.program import Program
from dreambooth.engine.training import precision, preview, traced_step
from dreambooth.engine.training.step_metrics import StepMetrics
from tests.engine.runs import LORA, SHORT, new_run, output, same, tiny_project, told, train
from tests.engine.simulated_card import simulated_card

ON = {"tuning.cuda_graphs": True}
STEPS = {"intervals.max_train_steps": 12, "batching.train_batch_size": 1}


@pytest.fixture(scope="module")
def star(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return tiny_project(tmp_path_factory.mktemp("graph"))


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[Program]:
    """A device that has graphs. Which programs were replayed."""
    done: list[Program] = []

    def capture(program: Program, inputs: list[Tensor], room: graph.Room) -> graph.Captured:
        outputs = tuple(torch.full_like(one, float("nan")) for one in program(inputs))

        def replay() -> None:
            done.append(program)
            for place, value in zip(outputs, program(inputs)):
                place.copy_(value)

        return replay, outputs

    monkeypatch.setattr(traced_step, "MIN_REMAINING_BATCHES", 4)
    monkeypatch.setattr(graph, "fault", lambda device: "")
    monkeypatch.setattr(graph, "capture", capture)
    return done


@pytest.mark.parametrize(
    "changes",
    [
        {},
        LORA,
        {**LORA, "lora.dropout": 0.3},
        {"batching.gradient_accumulation_steps": 3},
        {"tuning.use_ema": True, "optimizer.max_grad_norm": 0.01},
    ],
)
def test_what_is_learned_is_the_same_to_the_bit(changes: dict[str, Any], star: Project, replays: list[Program]) -> None:
    wanted = output(train(star, **STEPS, **changes, **{"tuning.trace_steps": False}))
    job = train(star, **STEPS, **changes, **ON)
    assert not told(job, "warning")
    assert len(replays) == 12 * changes.get("batching.gradient_accumulation_steps", 1) - traced_step.EAGER_BATCHES - 2
    assert same(wanted, output(job))


def test_a_graph_sees_a_loss_scale_that_changes(
    star: Project, replays: list[Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a power of two it changes no bit of what is learned, wherever each scaled gradient is unscaled by the same."""
    plain, end_step = precision.of, StepMetrics.end_step

    def of(settings: Any) -> Any:
        made = plain(settings)
        made.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        return made

    def lower(pulse: StepMetrics, norms: Tensor) -> Tensor:
        if pulse.session.step == 8:
            pulse.session.accelerator.scaler._scale.div_(16)
        return end_step(pulse, norms)

    monkeypatch.setattr(precision, "of", of)
    monkeypatch.setattr(StepMetrics, "end_step", lower)
    wanted = output(train(star, **STEPS, **LORA, **{"tuning.trace_steps": False}))
    job = train(star, **STEPS, **LORA, **ON)
    assert not told(job, "warning")
    assert len(replays) > 4
    assert same(wanted, output(job))


def two_shapes(folder: Path) -> dict[str, Any]:
    """Settings of a run whose pictures are wide and square in turn."""
    for n, path in enumerate(sorted(SUBJECT_PICTURES.glob("*.png"))[:4]):
        Image.open(path).convert("RGB").resize((128, 128) if n % 2 else (256, 64)).save(folder / f"{n}.png")
    return {
        **STEPS,
        "concepts.0.instance_data_dir": str(folder),
        "general.resolution": 128,
        "intervals.max_train_steps": 16,
    }


@pytest.mark.thorough
def test_pictures_of_several_shapes_have_a_graph_each(star: Project, replays: list[Program], tmp_path: Path) -> None:
    changes = {**two_shapes(tmp_path), "batching.gradient_accumulation_steps": 2}
    wanted = output(train(star, **changes, **{"tuning.trace_steps": False}))
    assert same(wanted, output(train(star, **changes, **ON)))
    assert len(set(replays)) == 2


@pytest.mark.parametrize("broken", ["capture", "replay"])
def test_where_it_cannot_be_captured_or_is_wrong_the_run_goes_on_without(
    broken: str, star: Project, replays: list[Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = output(train(star, **STEPS, **{"tuning.trace_steps": False}))
    plain = graph.capture

    def fails(program: Program, inputs: list[Tensor], room: graph.Room) -> graph.Captured:
        if broken == "capture":
            raise RuntimeError("operation not permitted when stream is capturing.\nMore words.")
        outputs = plain(program, inputs, room)[1]
        return lambda: None, outputs  # its outputs stay what they were

    monkeypatch.setattr(graph, "capture", fails)
    job = train(star, **STEPS, **ON)
    (warning,) = told(job, "warning")
    assert warning["where"] == ("tuning.cuda_graphs" if broken == "capture" else "tuning.trace_steps")
    assert ("operation not permitted when stream is capturing)" in warning["text"]) == (broken == "capture")
    assert same(wanted, output(job))


@pytest.mark.thorough
def test_a_graph_whose_room_another_could_not_share_is_given_up(
    star: Project, replays: list[Program], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, captured = graph.capture, list[int]()

    def fails(program: Program, inputs: list[Tensor], room: graph.Room) -> graph.Captured:
        captured.append(len(replays))
        if len(captured) == 2:
            raise RuntimeError("operation not permitted when stream is capturing.")
        return plain(program, inputs, room)

    monkeypatch.setattr(graph, "capture", fails)
    changes = two_shapes(tmp_path)
    wanted = output(train(star, **changes, **{"tuning.trace_steps": False}))
    job = train(star, **changes, **ON)
    (warning,) = told(job, "warning")
    assert warning["where"] == "tuning.cuda_graphs"
    assert captured[1:] == [len(replays)], "none is replayed from then on"
    assert same(wanted, output(job))


def test_without_memory_for_it_the_run_goes_on_without(
    star: Project, replays: list[Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: Any) -> graph.Captured:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 96.00 MiB.")

    monkeypatch.setattr(graph, "capture", fails)
    job = train(star, **STEPS, **ON)
    (warning,) = told(job, "warning")
    assert warning["where"] == "tuning.cuda_graphs"
    assert job.settings()["tuning.cuda_graphs"] is False


def test_the_locked_torch_is_known_to_keep_the_pool_of_a_capture_that_failed() -> None:
    """A newer one gives it back by itself, so that `graph._end` has less to do: look at it again, with what it says of
    the allocator and the generator."""
    assert f"torch=={graph.LAST_TO_LEAK}" in LOCK.read_text(encoding="utf-8").split()


@pytest.mark.parametrize(
    ("version", "hip", "keeps"),
    [
        ("2.11.0+cu128", None, True),
        ("2.13.0", None, True),
        ("2.13.0+cu130", None, True),
        ("2.13.1+cu130", None, False),
        ("2.14.0.dev20260801+cu130", None, False),
        ("2.13.0+rocm7.1", "7.1.25424", False),
    ],
)
def test_which_torch_keeps_the_pool_of_a_capture_that_failed(version: str, hip: str | None, *, keeps: bool) -> None:
    assert graph._keeps_pool(version, hip) is keeps


@pytest.mark.parametrize(
    ("fault", "keeps", "wanted"),
    [
        ("refused", True, ["wait", "ended", "released", "a capture went well"]),
        ("refused late", True, ["wait", "released", "a capture went well"]),
        ("refused", False, ["wait", "ended", "a capture went well"]),
        ("refused late", False, ["wait", "a capture went well"]),
        ("raised", True, ["wait", "captured"]),
        ("not begun", True, ["wait"]),
    ],
)
def test_a_capture_that_fails_is_ended_and_its_stream_left(
    fault: str, wanted: list[str], monkeypatch: pytest.MonkeyPatch, *, keeps: bool
) -> None:
    """PyTorch 2.11 and 2.13 leave the stream current, and the allocator and the generator of random numbers in the
    capture, where the device itself refuses it; the allocator has left it, but holds its memory, where that is refused
    when it has ended. Where only Python raises, they end it, and the graph gives its memory back."""
    streams, done = ["default"], list[str]()

    class Stream:
        def wait_stream(self, other: Any) -> None:
            done.append("wait")

    @contextmanager
    def stream(chosen: Any) -> Iterator[None]:
        before = list(streams)
        try:
            yield
        finally:
            streams[:] = before

    class Capture:
        def __init__(self, graph: Any, pool: Any = None, stream: Any = None) -> None:
            self.pool = pool
            assert (stream is room.stream) == bool(pool), "what cuBLAS has on a stream goes with a graph that goes"

        def __enter__(self) -> None:
            if fault == "not begun":
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            streams.append("capturing")

        def __exit__(self, *error: Any) -> None:
            if self.pool and fault.startswith("refused"):
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
            streams.pop()
            done.append("a capture went well" if not self.pool else "captured")

    def end(device: int, pool: Any) -> None:
        if fault != "refused":
            raise RuntimeError("endAllocatePool: not currently recording")
        done.append("ended")

    def pool() -> Any:
        if "captured" not in done:
            raise RuntimeError("Called CUDAGraph::pool() without a preceding successful capture.")

    def fails(inputs: list[Tensor]) -> tuple[Tensor, ...]:
        if streams[-1] == "capturing":
            raise RuntimeError("operation not permitted")
        return (inputs[0],)

    with simulated_card():
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "stream", stream)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(pool=pool))
        monkeypatch.setattr(torch.cuda, "graph", Capture)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda device, pool: done.append("released"), raising=False)
        monkeypatch.setattr(torch.version, "hip", None if keeps else "7.1")
        room = graph.Room((0, 1), Stream())
        with pytest.raises(
            RuntimeError, match="illegal memory" if fault == "not begun" else "^operation not permitted$"
        ):
            graph.capture(fails, [torch.ones(2)], room)  # type: ignore[arg-type]
    assert streams == ["default"]
    assert done == wanted


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("culprit", [torch.OutOfMemoryError("CUDA out of memory."), TypeError("odd")])
def test_what_failed_within_a_capture_is_told_and_not_its_end(
    culprit: Exception, monkeypatch: pytest.MonkeyPatch, *, ends: bool
) -> None:
    class Capture:
        def __enter__(self) -> None:
            programs.append(fails)

        def __exit__(self, *error: Any) -> None:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    def fails(inputs: list[Tensor]) -> tuple[Tensor, ...]:
        raise culprit

    def end(*given: Any, **more: Any) -> None:
        if not ends:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    programs: list[Any] = [lambda inputs: (inputs[0],)]
    with simulated_card():
        monkeypatch.setattr(torch.cuda, "CUDAGraph", SimpleNamespace)
        monkeypatch.setattr(torch.cuda, "graph", lambda *given, **more: Capture())
        monkeypatch.setattr(graph, "_end", end)
        program: Any = lambda inputs: programs[-1](inputs)  # noqa: E731
        with pytest.raises(RuntimeError, match=str(culprit)) as raised:
            graph.capture(program, [torch.ones(2)], graph.Room(None, torch.cuda.Stream()))
    assert out_of_memory.is_out_of_memory(raised.value) == isinstance(culprit, torch.OutOfMemoryError)


def test_graphs_of_several_shapes_are_captured_on_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the allocator gives none of them what another is done with."""
    captured: list[tuple[Any, Any]] = []

    @contextmanager
    def capture(made: Any, pool: Any, stream: Any) -> Iterator[None]:
        captured.append((pool, stream))
        yield

    program: Any = lambda inputs: (inputs[0],)  # noqa: E731
    with simulated_card():
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
        monkeypatch.setattr(torch.cuda, "graph", capture)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
        first = graph.Graph(program, [torch.ones(2, device="cuda")])
        graph.Graph(program, [torch.ones(3, device="cuda")], like=first)
    assert captured[0] == captured[1]


def test_it_is_refused_without_a_gpu(star: Project) -> None:
    with pytest.raises(UserError, match=r"tuning\.cuda_graphs: it needs a card of NVIDIA or AMD; turn it off\."):
        worker.run(new_run(star, **STEPS, **ON))


@pytest.mark.parametrize("other", [{"tuning.trace_steps": False}, {"memory.step_in_backward": True}])
def test_it_goes_with_traced_steps_alone(other: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"tuning\.cuda_graphs: .*turn .* (on|off)\."):
        parse({**SHORT, **ON, **other})


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("One thing.\nAnother."), "One thing"),
        (ValueError(), "ValueError"),
        (RuntimeError("x" * 999), "x" * 200),
    ],
)
def test_the_first_line_of_an_error(error: Exception, said: str) -> None:
    first: Callable[[BaseException], str] = out_of_memory.first_line
    assert first(error) == said


def test_previews_that_lack_memory_have_that_of_the_graphs_first(
    star: Project, replays: list[Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    make, failed = preview.make, list[int]()

    def short(model: Any, settings: Any, folder: Path, images: int, *rest: Any, **more: Any) -> Any:
        if images and settings.tuning.cuda_graphs:
            failed.append(len(replays))
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return make(model, settings, folder, images, *rest, **more)

    monkeypatch.setattr(preview, "make", short)
    drawn = {"previews.count": 1, "previews.steps": 1, "intervals.save_preview_every_steps": 8}
    wanted = output(train(star, **STEPS, **{"tuning.trace_steps": False}))
    job = train(star, **STEPS, **ON, **drawn)
    assert failed == [8 - traced_step.EAGER_BATCHES - 2] == [len(replays)], "from then on none is replayed"
    assert next(event["text"] for event in told(job, "warning")).endswith("They go on with no CUDA graphs.")
    assert told(job, "resumed") == []
    assert same(wanted, output(job))
