"""Steps that are done again from a record of their operations: what is learned is the same to the bit."""

from __future__ import annotations

import functools
import gc
import linecache
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from traceback import format_exception
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from dreambooth.core.install_paths import SUBJECT_PICTURES
from dreambooth.core.project import Project
from dreambooth.engine import families, worker
from dreambooth.engine.bench.live_tensors import Live
from dreambooth.engine.checkpoints.source import open_model
from dreambooth.engine.drawing import prediction
from dreambooth.engine.drawing.sampling import Known, draw
from dreambooth.engine.drawing.sampling_choice import Sampling
from dreambooth.engine.families.model import Model
from dreambooth.engine.tracing.program import NotTraceable, Program, _Source, record
from dreambooth.engine.tracing.recorder import Made, Operation
from dreambooth.engine.training import traced_step
from tests.engine.runs import LORA, new_run, output, same, tiny_project, told, train

STEPS = {"intervals.max_train_steps": 8, "batching.train_batch_size": 1}
CHECKPOINTED = {"batching.gradient_checkpointing": True}
BF16 = {"tuning.mixed_precision": "bf16"}
LONGER = {"intervals.max_train_steps": 24}
TRACED = 8 - traced_step.EAGER_BATCHES - 2  # two are needed to write down and to check


# ---- programs


def again(function: Callable[[list[Tensor]], list[Tensor]], *shapes: tuple[int, ...]) -> Program:
    """Holds a program against its function, on other values than those it was written down with."""
    torch.manual_seed(0)
    _, program = record(function, [torch.randn(shape) for shape in shapes])
    others = [torch.randn(shape) for shape in shapes]
    torch.manual_seed(1)
    found = program(others)
    torch.manual_seed(1)
    wanted = function(others)
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted):
        assert torch.equal(one, other)
    return program


def test_a_program_does_the_same_with_other_values() -> None:
    again(lambda given: [given[0] @ given[1], given[0].sum()], (3, 4), (4, 2))


def test_parts_of_tensors_are_parts_of_the_new_ones() -> None:
    def parts(given: list[Tensor]) -> list[Tensor]:
        first, second = given[0].T.chunk(2)
        return [first.reshape(-1), second[1:].contiguous(), given[0][:, 1], first]

    again(parts, (3, 4))


def test_what_is_written_into_is_written_into_again() -> None:
    def written(given: list[Tensor]) -> list[Tensor]:
        room = torch.zeros(4, 4)
        room[1:3] += given[0]
        room.mul_(2)[0].fill_(7)
        return [room, room.clone().relu_()]

    again(written, (2, 4))


def test_random_numbers_are_drawn_anew() -> None:
    again(lambda given: [nn.functional.dropout(given[0], 0.5), torch.randn_like(given[0])], (5, 5))


def test_a_constant_may_change_its_values() -> None:
    layer = nn.Linear(4, 4)
    _, program = record(lambda given: [layer(given[0])], [torch.ones(2, 4)])
    with torch.no_grad():
        layer.weight.mul_(3)
    assert torch.equal(program([torch.ones(2, 4)])[0], layer(torch.ones(2, 4)))


def test_a_programs_text_has_no_words_of_others() -> None:
    """Only names that are made there and numbers, whatever an operation is given."""
    source = _Source()
    gelu = torch.ops.aten.gelu.default
    hostile = "none'); import os; ('"
    line = source.line(Operation(gelu, (Made(1),), {"approximate": hostile}, [Made(2)], is_many=False))
    assert line == "t2 = aten__gelu_0(t1, approximate=o1)"
    assert source.objects["o1"] == hostile
    call = Operation(functools.partial(_hostile, hostile), (), {}, [], is_many=False)
    assert source.line(call) == "print_1___import_os__1()"


def _hostile(words: str) -> None:
    raise AssertionError


_hostile.__qualname__ = "print(1); import os;"


def test_a_traceback_shows_which_operation_of_a_program_it_was() -> None:
    _, program = record(lambda given: [given[0].exp() @ given[1]], [torch.ones(3, 4), torch.ones(4, 2)])
    with pytest.raises(RuntimeError) as raised:
        program([torch.ones(3, 4), torch.ones(5, 2)])
    assert re.search(
        r'File "<traced \d+>", line 4, in run\n +t\d+ = aten__mm_1\(t\d+, t1\)', "".join(format_exception(raised.value))
    )
    files = {file for file in linecache.cache if file == program._run.__code__.co_filename}
    assert files
    del program, raised
    gc.collect()
    assert not files & set(linecache.cache), "it goes with the program"


def test_a_program_that_is_let_go_of_holds_nothing() -> None:
    def made() -> tuple[Program, StorageWeakRef]:
        layer = nn.Linear(4, 4)
        _, program = record(lambda given: [layer(given[0])], [torch.ones(2, 4)])
        return program, StorageWeakRef(layer.weight.untyped_storage())

    gc.disable()
    try:
        program, weight = made()
        assert not weight.expired()
        del program
        assert weight.expired()
    finally:
        gc.enable()


def test_what_nothing_comes_of_is_left_out() -> None:
    def wasteful(given: list[Tensor]) -> list[Tensor]:
        (given[0] @ given[0]).exp()
        return [given[0] + 1]

    with Live() as live:
        again(wasteful, (64, 64))([torch.ones(64, 64)])
    assert live.peak < 8 * 64 * 64 * 4


@pytest.mark.parametrize(
    "function",
    [
        lambda given: [given[0] if given[0].sum() > 0 else -given[0]],
        lambda given: [given[0][given[0] > 0]],
        lambda given: [given[0].nonzero()],
        lambda given: [given[0] * given[0].max().item()],
    ],
)
def test_what_depends_on_values_cannot_be_written_down(function: Callable[[list[Tensor]], list[Tensor]]) -> None:
    with pytest.raises(NotTraceable):
        record(function, [torch.ones(3)])


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_program_holds_no_more_than_autograd(checkpointed: bool) -> None:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)) for _ in range(6)]
    weights = [weight for block in blocks for weight in block.parameters()]

    def step(given: list[Tensor]) -> list[Tensor]:
        x = given[0]
        for block in blocks:
            x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False) if checkpointed else block(x)
        loss = x.square().mean()
        loss.backward()
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        for weight in weights:
            weight.grad = None
        return [loss.detach(), *gradients]

    x, peaks = torch.randn(512, 64), []
    _, program = record(step, [x])
    for function in (step, program):
        with Live(held=[x, *weights]) as live:
            found = function([x])
        peaks.append(live.peak)
        del found
    assert peaks[1] <= peaks[0]


# ---- runs


@pytest.fixture(autouse=True)
def worth_it_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traced_step, "MIN_REMAINING_BATCHES", 4)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """How often programs and UNets were run."""
    counts = {"programs": 0, "unets": 0}

    def counting(what: Callable[..., Any], name: str) -> Callable[..., Any]:
        def count(*given: Any, **more: Any) -> Any:
            counts[name] += 1
            return what(*given, **more)

        return count

    monkeypatch.setattr(Program, "__call__", counting(Program.__call__, "programs"))
    monkeypatch.setattr(UNet2DConditionModel, "forward", counting(UNet2DConditionModel.forward, "unets"))
    yield counts


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Project]:
    folder = tmp_path_factory.mktemp("traced")
    return {family: tiny_project(folder, family) for family in ("sd1", "sd2-v", "sdxl")}


def test_a_run_is_traced_only_where_that_is_asked_for(projects: dict[str, Project], counted: dict[str, int]) -> None:
    train(projects["sd1"], **STEPS, **{"tuning.trace_steps": False})
    assert counted == {"programs": 0, "unets": 8}
    counted.update(programs=0, unets=0)
    train(projects["sd1"], **STEPS)
    assert counted == {"programs": TRACED + 1, "unets": 8 - TRACED}


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("sd2-v", {"objective.weighting": "min_snr", "objective.offset_noise": 0.1, "memory.attention": "sliced"}),
    "lora": ("sdxl", LORA),
    "dropout": ("sd1", {**LORA, "lora.layers": "convolutions", "lora.dropout": 0.3}),
    "dora": ("sd1", {**LORA, "lora.kind": "dora", "optimizer.name": "adamw_schedule_free"}),
    "oft": ("sd1", {**LORA, "lora.kind": "oft"}),
    "loha": ("sd1", {**LORA, "lora.kind": "loha", "lora.layers": "convolutions", **CHECKPOINTED}),
    "lokr": ("sd1", {**LORA, "lora.kind": "lokr", "lora.layers": "convolutions", **BF16}),
    "half precision": ("sd1", {**LORA, **BF16}),
    "autocast": ("sd1", BF16),
    "bf16 weights": ("sd1", {"memory.bf16_weights": True, **BF16}),
    "text encoders": (
        "sdxl",
        {
            "tuning.text_encoder_ratio": 1.0,
            "captions.dropout": 0.2,
            "captions.weighted": True,
            "concepts.0.instance_prompt": "a photo of {(sks:1.5)|[sks]} star",
            **LONGER,
        },
    ),
    "an optimizer that wants weights in one order": (
        "sdxl",  # whose file holds a transposed one; it is written down before the first step
        {
            "optimizer.name": "adamw_8bit",
            "tuning.text_encoder_ratio": 1.0,
            "batching.gradient_accumulation_steps": 4,
        },
    ),
    "part of the run": ("sd1", {"tuning.text_encoder_ratio": 0.5, **LONGER}),
    "checkpointed": ("sd1", {**LORA, **CHECKPOINTED, "memory.checkpointed_share": 0.5}),
    "int8": ("sd1", {**LORA, "memory.unet_weights": "int8", **CHECKPOINTED}),
    "streamed": ("sd1", {**LORA, "memory.unet_weights": "streamed", **CHECKPOINTED}),
    "a class that is kept by prediction": (
        "sdxl",
        {
            **LORA,
            **BF16,
            "concepts.0.class_mode": "prediction",
            "concepts.0.class_prompt": "a star",
            "tuning.text_encoder_ratio": 0.5,
            **LONGER,
        },
    ),
    "the same, streamed": (
        "sd1",
        {
            **LORA,
            "concepts.0.class_mode": "prediction",
            "concepts.0.class_prompt": "a star",
            "memory.unet_weights": "streamed",
            **CHECKPOINTED,
        },
    ),
    "added up": (
        "sd1",
        {
            "batching.gradient_accumulation_steps": 2,
            "tuning.use_ema": True,
            "optimizer.name": "lion",
            "objective.loss": "huber",
            "objective.huber_schedule": "snr",
            "concepts.0.loss_weight": 2.0,
        },
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_learned_is_the_same_to_the_bit(
    kind: str, projects: dict[str, Project], counted: dict[str, int]
) -> None:
    family, changes = KINDS[kind]
    results = []
    for on in (False, True):
        counted["programs"] = 0
        job = train(projects[family], **{**STEPS, **changes, "tuning.trace_steps": on})
        assert not told(job, "warning")
        results.append(output(job))
        assert (counted["programs"] > 2) == on
    assert same(*results)


@pytest.mark.parametrize(
    "changes",
    [
        {**LORA, "lora.dropout": 0.3, **CHECKPOINTED},
        {"intervals.max_train_steps": traced_step.EAGER_BATCHES + 3},
    ],
)
def test_what_cannot_be_traced_or_is_too_short_is_done_as_ever(
    changes: dict[str, Any], projects: dict[str, Project], counted: dict[str, int]
) -> None:
    results = [output(train(projects["sd1"], **{**STEPS, **changes, "tuning.trace_steps": on})) for on in (False, True)]
    assert counted["programs"] == 0
    assert same(*results)


@pytest.mark.thorough
def test_pictures_of_several_shapes_have_a_program_each(
    projects: dict[str, Project], counted: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n, path in enumerate(sorted(SUBJECT_PICTURES.glob("*.png"))[:4]):
        Image.open(path).convert("RGB").resize((128, 128) if n % 2 else (256, 64)).save(tmp_path / f"{n}.png")
    changes: dict[str, Any] = {
        "concepts.0.instance_data_dir": str(tmp_path),
        "concepts.0.class_mode": "folder",
        "concepts.0.class_data_dir": str(SUBJECT_PICTURES),
        "concepts.0.class_prompt": "a photo of a star",
        "general.resolution": 128,
        **STEPS,
        **LONGER,
    }
    run, programs = Program.__call__, set()
    monkeypatch.setattr(Program, "__call__", lambda self, given: programs.add(self) or run(self, given))
    results = [output(train(projects["sd1"], **changes, **{"tuning.trace_steps": on})) for on in (False, True)]
    assert len(programs) == 2
    assert counted["programs"] > 24 - 2 * (traced_step.EAGER_BATCHES + 2)
    assert same(*results)


@pytest.mark.parametrize("wrong", ["a gradient", "a loss", "an error"])
def test_a_program_that_gives_something_else_is_not_used(
    wrong: str, projects: dict[str, Project], counted: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = output(train(projects["sd1"], **STEPS, **{"tuning.trace_steps": False}))
    plain = Program.__call__

    def spoilt(program: Program, inputs: Any) -> Any:
        found = plain(program, inputs)
        if wrong == "an error":
            raise RuntimeError("This device has another opinion.")
        return (found[0] * 1.5, *found[1:]) if wrong == "a loss" else (*found[:-1], found[-1] * 1.5)

    monkeypatch.setattr(Program, "__call__", spoilt)
    job = train(projects["sd1"], **STEPS)
    (warning,) = told(job, "warning")
    assert warning["where"] == "tuning.trace_steps"
    said = "done again from its record (This device has another opinion)" if wrong == "an error" else "other gradients"
    assert said in warning["text"]
    assert counted["programs"] == 1
    assert same(wanted, output(job))


def test_memory_that_is_short_in_a_record_is_no_other_opinion(
    projects: dict[str, Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a card's libraries say it."""
    plain, seen = Program.__call__, list[Program]()

    def short(program: Program, inputs: Any) -> Any:
        seen.append(program)
        if len(seen) == 1:
            raise RuntimeError("GET was unable to find an engine to execute this computation")
        return plain(program, inputs)

    monkeypatch.setattr(Program, "__call__", short)
    job = train(projects["sd1"], **STEPS)
    (warning,) = told(job, "warning")
    assert warning["where"] == "batching.gradient_checkpointing"
    assert len(set(seen)) == 2


@pytest.mark.thorough
def test_a_run_that_paused_ends_as_one_that_did_not(
    projects: dict[str, Project], counted: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it is traced from other steps on."""
    changes = {**STEPS, **LORA, **LONGER, "lora.dropout": 0.2}
    wanted = output(train(projects["sd1"], **changes))
    at_once, counted["programs"] = counted["programs"], 0
    job = new_run(projects["sd1"], **changes)
    with monkeypatch.context() as patched:
        asked = lambda hooks: {"pause"} if hooks.session.step == 12 else set()  # noqa: E731
        patched.setattr(worker.RunHooks, "requests", asked)
        AcceleratorState._reset_state(reset_partial_state=True)
        assert worker.run(job) == "paused"
    AcceleratorState._reset_state(reset_partial_state=True)
    assert worker.run(job) == "done"
    assert counted["programs"] == at_once - traced_step.EAGER_BATCHES - 1
    assert same(wanted, output(job))


# ---- pictures


@pytest.fixture(scope="module")
def model(projects: dict[str, Project]) -> Model:
    return families.load(open_model(projects["sdxl"]), torch.float32)


def drawn(model: Model, *, traced: bool) -> list[bytes]:
    model.traced = traced
    known, sampling = Known(model), Sampling(64, 64, 20, 5.0)
    return [draw(model, ["a star", "a cat"], [n, n + 9], sampling, known=known)[0].tobytes() for n in range(4)]


def test_pictures_are_the_same_to_the_bit(model: Model, counted: dict[str, int]) -> None:
    plain = drawn(model, traced=False)
    assert counted == {"programs": 0, "unets": 80}
    counted["unets"] = 0
    assert drawn(model, traced=True) == plain
    assert counted == {"programs": 80 - prediction.WORTH - 1, "unets": prediction.WORTH + 2}


def test_a_wrong_program_draws_nothing(model: Model, counted: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = drawn(model, traced=False)
    run = Program.__call__
    monkeypatch.setattr(Program, "__call__", lambda program, inputs: (run(program, inputs)[0] * 1.1,))
    assert drawn(model, traced=True) == plain
    assert counted["programs"] == 1
