"""What a run does about losses that are no numbers and about too little memory, and which states it keeps."""

from __future__ import annotations

import dataclasses
import errno
import mmap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dreambooth.core import job_folder
from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import MINIATURE
from dreambooth.core.job_folder import Job
from dreambooth.core.memory import footprint_table, planner
from dreambooth.core.project import Project
from dreambooth.core.settings import parse
from dreambooth.core.settings.optimization import LearningRate
from dreambooth.engine import families, out_of_memory, worker
from dreambooth.engine.drawing.sampling import NotDrawn
from dreambooth.engine.families.model import Model
from dreambooth.engine.run import hooks, outputs, recovery
from dreambooth.engine.training import adapters, loss, optimizers
from dreambooth.engine.training.ema import Ema
from dreambooth.engine.training.session import Session
from tests.engine.runs import LORA, new_run, output, saved, told, train
from tests.engine.runs import same as same_weights
from tests.engine.runs import tiny_project as make_project

EACH_STEP = {"intervals.num_train_epochs": 6, "intervals.save_state_every_steps": 1}  # a step is an epoch
RATE = "learning.learning_rate"


@pytest.fixture(scope="module")
def star(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("trouble"))


def at_batches(monkeypatch: pytest.MonkeyPatch, numbers: set[int], do: Callable[[Any], Any]) -> None:
    """Has `do` make something else of the losses of these batches, counted from 1 over all attempts."""
    count, plain = 0, loss.compute_losses

    def changed(*arguments: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        losses = plain(*arguments, **more)
        return do(losses) if count in numbers else losses

    monkeypatch.setattr(loss, "compute_losses", changed)


def spoilt(losses: Any) -> Any:
    return tuple(one * float("nan") for one in losses)


def raise_out_of_memory(losses: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 96.00 MiB. GPU 0 has a total capacity of ...")


@pytest.mark.parametrize(
    ("said", "is_memory"),
    [
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("CUDA error: out of memory", True),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", True),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED", True),
        ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", True),
        ("CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`", True),
        ("miopenStatusAllocFailed", True),
        ("GET was unable to find an engine to execute this computation", True),
        ("FIND was unable to find an engine to execute this computation", True),
        ("Unable to find a valid cuDNN algorithm to run convolution", True),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", False),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(...)`", False),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_what_a_card_says_of_too_little_memory(said: str, is_memory: bool) -> None:
    """PyTorch's own class says it of its tensors; CUDA and its libraries have words of their own."""
    assert out_of_memory.is_out_of_memory(RuntimeError(said)) == is_memory


@pytest.mark.parametrize(
    "said",
    [
        "[enforce fail at alloc_cpu.cpp:117] data. DefaultCPUAllocator: not enough memory: you tried to allocate 31850 "
        "bytes.",
        "Couldn't open file mapping: <model.safetensors>, error code: <1455>",
        "unable to mmap 23802932552 bytes from file <model.safetensors>: Cannot allocate memory (12)",
    ],
)
def test_what_pytorch_says_of_too_little_memory_of_the_computer(said: str) -> None:
    """On Windows it has other words than on Linux."""
    assert out_of_memory.is_out_of_memory(RuntimeError(said))


def test_what_windows_says_of_too_little_memory() -> None:
    """A file that is mapped and a library that is loaded take memory too; the text is in the language of Windows."""
    in_german = "Die Auslagerungsdatei ist zu klein"
    by_python = OSError(22, in_german)
    assert not out_of_memory.is_out_of_memory(by_python)
    by_python.winerror = 1455  # type: ignore[attr-defined, unused-ignore]
    assert out_of_memory.is_out_of_memory(by_python)
    assert out_of_memory.is_out_of_memory(OSError(f"{in_german}. (os error 1455)")), "as safetensors says it"
    with pytest.raises(OSError) as raised:
        mmap.mmap(-1, 1 << 60)
    assert out_of_memory.is_out_of_memory(raised.value)
    assert not out_of_memory.is_out_of_memory(FileNotFoundError(2, "No such file or directory"))


def warnings(job: Job) -> list[str]:
    return [event["text"] for event in told(job, "warning")]


@pytest.mark.parametrize(
    ("kept", "there"),
    [
        ({}, [5]),
        ({"intervals.states_kept": 3}, [3, 4, 5]),
        ({"intervals.states_kept_every": 2}, [2, 4, 5]),
    ],
)
def test_the_states_that_are_asked_for_stay(
    star: Project, monkeypatch: pytest.MonkeyPatch, kept: dict[str, int], there: list[int]
) -> None:
    job = new_run(star, **EACH_STEP, **kept)
    monkeypatch.setattr(worker.RunHooks, "requests", lambda hooks: {"pause"} if hooks.session.step == 5 else set())
    assert worker.run(job) == "paused"
    assert sorted(int(path.name) for path in job.state.iterdir()) == there
    assert [event["step"] for event in told(job, "state")] == [1, 2, 3, 4, 5, 5]  # the pause finds its state there


def test_a_step_that_is_no_number_is_left_out(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    at_batches(monkeypatch, {2, 3}, spoilt)
    job = train(star, **EACH_STEP, **{"tuning.nonfinite_steps": 3})
    assert all(torch.isfinite(weight).all() for weight in output(job).values() if weight.is_floating_point())
    assert told(job, "resumed") == []
    assert len(warnings(job)) == 2  # a state is saved at each step, and each time it is looked
    assert "at step 2" in warnings(job)[0]
    assert "whose gradients were left out" in warnings(job)[0]
    assert ".png" in warnings(job)[0]


@pytest.mark.parametrize(
    "kind",
    ["full", "lora", *(pytest.param(kind, marks=pytest.mark.thorough) for kind in ("dora", "loha", "lokr", "oft"))],
)
def test_a_result_that_learned_nothing_says_so(star: Project, kind: str) -> None:
    """It is a file like any other."""
    method = {"general.method": "full"} if kind == "full" else {**LORA, "lora.kind": kind}
    none = {f"learning.{lora}{part}learning_rate": 0.0 for lora in ("", "lora_") for part in ("", "text_encoder_")}
    for rates, said in (({}, 0), (none, 1)):
        job = train(star, **{**method, **rates})
        found = [one for one in warnings(job) if "does not differ from what training began with" in one]
        assert len(found) == said, warnings(job)


def test_after_so_many_the_run_goes_back_with_half_the_rate(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    at_batches(monkeypatch, {3, 4}, spoilt)
    every = {"intervals.num_train_epochs": 6, "intervals.save_state_every_steps": 2}
    job = train(star, **every, **{"tuning.nonfinite_steps": 2})
    assert [event["step"] for event in told(job, "resumed")] == [2]
    assert job.changes()[RATE] == parse(job.settings()).learning.learning_rate == 5e-4
    assert "half the learning rate" in warnings(job)[-1]
    assert told(job, "step")[-1]["step"] == 6


def test_a_run_that_keeps_running_away_ends(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    at_batches(monkeypatch, set(range(2, 1000)), spoilt)
    job = new_run(star, **EACH_STEP, **{"tuning.nonfinite_steps": 1})
    with pytest.raises(UserError, match=f"gone back {recovery.MAX_DIVERGENCES} times.*lower {RATE}"):
        worker.run(job)
    assert [path.name for path in job.state.iterdir()] == ["000000001"]
    assert saved(job) == []


LEARNS: dict[str, dict[str, Any]] = {
    "full": {"general.method": "full"},
    "full with text encoder": {"general.method": "full", "tuning.text_encoder_ratio": 0.5},
    "text encoder": {"general.method": "full", "tuning.text_encoder_ratio": 1.0, "tuning.train_unet": False},
    "lora": {"general.method": "lora"},
    "lora with text encoder": {"general.method": "lora", "tuning.text_encoder_steps": 3},
    "lora with a word": {"general.method": "lora", "embedding.enabled": True},
    "a word": {"general.method": "embedding"},
}
WORD = {"concepts.0.instance_token": "sks", "concepts.0.instance_prompt": "a photo of sks star"}
RATES = [f"learning.{field.name}" for field in dataclasses.fields(LearningRate) if field.name.endswith("learning_rate")]


@pytest.mark.parametrize("what", LEARNS)
def test_the_rates_that_are_refused_or_halved_are_those_of_what_learns(what: str) -> None:
    """As the optimizer has them, for each optimizer, as often as a run may go back."""
    distinct: dict[str, Any] = {key: 0.001 * (n + 1) for n, key in enumerate(RATES)}
    flat = {**WORD, **distinct, **LEARNS[what]}
    chosen = parse(flat)
    made = optimizers.groups(adapters.make_trainable(families.load_file(MINIATURE), chosen), chosen)
    learning = {key for key in RATES for group in made if group.rate(chosen) == distinct[key]}
    assert learning
    for name in optimizers.RECIPES:
        is_prodigy = name == "prodigy"
        own = {**flat, "optimizer.name": name, **dict.fromkeys(learning, 1.0 if is_prodigy else 0.001)}
        for key in RATES:
            bad = 0.5 if is_prodigy and len(learning) > 1 else 1e-3 if is_prodigy else 1
            try:
                parse({**own, key: bad})
                assert key not in learning
            except UserError as error:
                assert any(one.startswith(tuple(learning)) for one in error.problems)
                assert key in learning
        for turn in range(recovery.MAX_DIVERGENCES):
            changes, _ = recovery.after_divergence(parse(own), "It ran away.", turn)
            assert changes == {key: own[key] / 2 for key in learning}
            own |= changes


def test_a_factor_of_prodigys_that_cannot_be_halved_is_said() -> None:
    chosen = parse({"optimizer.name": "prodigy", "learning.lora_learning_rate": 0.015})
    with pytest.raises(UserError, match=r"learning.lora_learning_rate cannot be lowered further: it is 0.015"):
        recovery.after_divergence(chosen, "It ran away.", 0)


def test_with_too_little_memory_it_goes_on_with_less(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(star, **EACH_STEP)
    at_batches(monkeypatch, {4}, raise_out_of_memory)
    job = train(star, **EACH_STEP)
    assert job.changes() == {"batching.gradient_checkpointing": True}
    assert [event["step"] for event in told(job, "resumed")] == [3]
    assert "96.00 MiB more were needed" in warnings(job)[0]
    assert same_weights(output(whole), output(job)), "checkpointing changes no bit"


def test_a_run_that_was_killed_at_its_first_state_has_learned_nothing_to_be_kept_at_a_stop(star: Project) -> None:
    job = new_run(star, **LORA)
    (job.state / ".saving").mkdir(parents=True)
    job.request("stop")
    assert worker.run(job) == "stopped"
    assert not saved(job) and not told(job, "step")


def test_the_curve_of_a_run_that_begins_anew_begins_anew(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dreambooth.engine.training.step_metrics.REPORT_SECONDS", 0.0)
    at_batches(monkeypatch, {2}, raise_out_of_memory)
    job = train(star, **{"intervals.num_train_epochs": 3})
    assert [event["step"] for event in told(job, "step")] == [1, 1, 2, 3]
    assert [step for step, *_ in job.story().course.points] == [1, 2, 3]


def test_each_retreat_takes_less_and_then_it_is_refused(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    at_batches(monkeypatch, set(range(2, 1000)), raise_out_of_memory)
    job = new_run(star, **EACH_STEP, **{"batching.train_batch_size": 4})
    with pytest.raises(UserError, match=r"memory and resume, or begin a new run with a smaller general\.resolution"):
        worker.run(job)
    assert job.changes() == {
        "batching.gradient_checkpointing": True,
        "batching.train_batch_size": 1,
        "batching.gradient_accumulation_steps": 4,
        "tuning.trace_steps": False,  # else each half's gradients would come beside those of the others
    }
    assert len(warnings(job)) == 3


def test_each_attempt_leaves_its_lent_memory_to_the_next(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(optimizers, "leave_paged", lambda: left.append(1))
    at_batches(monkeypatch, {2, 4}, raise_out_of_memory)
    train(star, **EACH_STEP)
    assert len(left) == 2


def no_numbers(monkeypatch: pytest.MonkeyPatch, times: int = 1000) -> None:
    """Has a model draw so often what is no picture."""
    decode, left = Model.decode, [times]

    def spoilt_pixels(own: Model, latents: torch.Tensor) -> torch.Tensor:
        left[0] -= 1
        return decode(own, latents) * (1.0 if left[0] < 0 else float("nan"))

    monkeypatch.setattr(Model, "decode", spoilt_pixels)


def test_previews_that_are_no_pictures_are_left_out(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    no_numbers(monkeypatch, times=1)
    job = train(star, **{"previews.count": 1, "previews.steps": 1})
    assert [event["images"] for event in told(job, "preview")] == [5], "and not before the first step"
    [warning] = told(job, "warning")
    assert "in place of a picture" in warning["text"] and "the run goes on" in warning["text"]


def test_class_pictures_that_are_none_are_not_learned(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    no_numbers(monkeypatch)
    of_class = {"concepts.0.class_prompt": "a moon", "concepts.0.num_class_images_per": 1}
    job = new_run(star, **of_class, **{"concepts.0.class_infer_steps": 1})
    before = set(star.folder.rglob("*.png"))
    with pytest.raises(NotDrawn, match="weights are damaged"):
        worker.run(job)
    assert set(star.folder.rglob("*.png")) == before


def test_stop_changes_nothing_and_says_what_would_help(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    at_batches(monkeypatch, {2}, raise_out_of_memory)
    job = new_run(star, **EACH_STEP, **{"memory.on_out_of_memory": "stop"})
    with pytest.raises(UserError, match=r"batching\.gradient_checkpointing on"):
        worker.run(job)
    assert job.changes() == {}
    assert worker.run(job) == "done"


def test_previews_without_memory_are_drawn_smaller_and_cost_no_training(
    star: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, failed = hooks.preview.make, []

    def short(model: Any, settings: Any, *rest: Any, **more: Any) -> Any:
        if settings.memory.vae_decoding != "tiled":
            failed.append(settings.batching.class_batch_size)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return make(model, settings, *rest, **more)

    monkeypatch.setattr(hooks.preview, "make", short)
    previews = {"previews.count": 1, "previews.steps": 1, "batching.class_batch_size": 2}
    job = train(star, **previews)
    assert failed == [2, 1]
    assert [event["images"] for event in told(job, "preview")] == [0, 5]
    assert told(job, "resumed") == []


def test_a_disk_that_takes_no_change_of_the_settings_costs_previews_and_no_training(
    star: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(hooks.preview, "make", lambda *given, **more: raise_out_of_memory(given))
    monkeypatch.setattr(job_folder, "write_json", full)
    job = train(star, **{"previews.count": 1, "previews.steps": 1, "batching.class_batch_size": 2})
    said = {event["text"] for event in told(job, "warning")}
    assert said and all("changes.json" in one and one.endswith("left out; the run goes on.") for one in said)
    at_batches(monkeypatch, {2}, raise_out_of_memory)
    job = new_run(star, **EACH_STEP, **{"batching.train_batch_size": 2})
    with pytest.raises(UserError, match=r"changes\.json: .* cannot be written .*; mend that and resume the run"):
        worker.run(job)
    monkeypatch.undo()
    assert worker.run(job) == "done"


def short_while_saving(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    save, left = outputs.save, [times]

    def short(*given: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return save(*given)

    monkeypatch.setattr(outputs, "save", short)


def test_a_result_for_whose_average_memory_is_short_is_written_as_it_is(
    star: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is trained again for it, which would end in the same place."""
    average = {"tuning.use_ema": True, "tuning.ema_decay": 0.9}
    raw = output(train(star, **EACH_STEP, **average, **{"saving.weights": "raw"}))
    short_while_saving(monkeypatch, 1)
    job = train(star, **EACH_STEP, **average)
    assert told(job, "resumed") == []
    [warning] = warnings(job)
    assert "not enough to write the model" in warning and "as they are" in warning
    assert same_weights(raw, output(job))


def test_a_result_that_cannot_be_written_at_all_waits_in_its_state(
    star: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_while_saving(monkeypatch, 2)
    job = new_run(star, **EACH_STEP)
    assert worker.run(job) == "paused"
    assert (told(job, "resumed"), saved(job)) == ([], [])
    assert "resume the run" in warnings(job)[-1]
    assert worker.run(job) == "done"


def test_what_is_set_aside_for_an_average_takes_no_room_on_the_device() -> None:
    """In one precision the two change places; else the weights wait in the computer's memory, which is none of it."""
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.nn.Parameter(torch.arange(4.0).to(dtype))
        before, place = weight.detach().clone(), weight.data_ptr()
        ema = Ema({"w": weight}, 0.9)
        ema.average["w"] += 10
        session: Any = SimpleNamespace(
            trained=SimpleNamespace(named=lambda weight=weight: {"w": weight}),
            ema=ema,
            settings=parse({"general.method": "full", "tuning.use_ema": True}),
            optimizer=None,
        )
        with Session.shown(session):
            assert torch.equal(weight, before + 10)
            assert (weight.data_ptr() == place) == (dtype != torch.float32)
        assert torch.equal(weight, before) and weight.data_ptr() == place
        assert torch.equal(ema.average["w"], before.float() + 10)


def test_where_less_is_set_no_more_is_taken() -> None:
    """Half a batch is added up to the same step, for which gradients of full fine-tuning are kept."""
    full = {"general.method": "full", "batching.train_batch_size": 2, "batching.gradient_checkpointing": True}
    estimate = recovery.MemoryEstimate(footprint_table.full_size("sd1"), "sd1", 512**2, has_own_memory=True)
    some = parse({**full, "optimizer.name": "adafactor"})
    halves = {"batching.train_batch_size": 1, "batching.gradient_accumulation_steps": 2}
    assert estimate.bytes(planner.with_changes(some, halves), recovery.TRAINING) > estimate.bytes(
        some, recovery.TRAINING
    )
    assert recovery.next_memory_saving(some, recovery.TRAINING, estimate=estimate) is None
    many = planner.with_changes(some, {"batching.train_batch_size": 64})
    step = recovery.next_memory_saving(many, recovery.TRAINING, estimate=estimate)
    assert step and step[0] == {**halves, "batching.train_batch_size": 32}
    fewer = planner.with_changes(many, step[0])
    assert estimate.bytes(fewer, recovery.TRAINING) < estimate.bytes(many, recovery.TRAINING)


@pytest.mark.parametrize("streams", [True, False])
def test_a_model_that_is_too_large_to_be_loaded_is_streamed(streams: bool) -> None:
    """To a card; an Apple GPU's memory is the computer's own."""
    estimate = recovery.MemoryEstimate(footprint_table.full_size("sdxl"), "sdxl", 1024**2, streams)
    step = recovery.next_memory_saving(parse({"general.method": "lora"}), recovery.LOADING, estimate=estimate)
    assert (step is not None) == streams
    if step:
        assert step[0] == {"memory.unet_weights": "streamed", "batching.gradient_checkpointing": True}
        then = planner.with_changes(parse({"general.method": "lora"}), step[0])
        assert recovery.next_memory_saving(then, recovery.LOADING, estimate=estimate) is None, (
            "and then there is nothing left"
        )
    with pytest.raises(UserError, match=r"while loading the model.*memory\.unet_weights"):
        recovery.after_out_of_memory(
            parse({"general.method": "full"}), recovery.LOADING, "1 GB more were needed", estimate=estimate
        )
