"""Whole runs on a card: they repeat and go on to the bit, wait for nothing, and hold what they need alone."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from dreambooth.core.job_folder import Job
from dreambooth.core.project import Project
from dreambooth.engine import worker
from dreambooth.engine.bench.card_memory import Card, Cuda
from dreambooth.engine.bench.card_simulated import Simulated
from dreambooth.engine.run import setup
from dreambooth.engine.training import step_metrics, traced_step
from tests.engine import test_waits
from tests.engine.runs import LORA, new_run, output, same, told, train
from tests.gpu.conftest import reported, without_card

EXACT = {"tuning.deterministic": True, "general.resolution": 128, "batching.train_batch_size": 1}
RESUMED: dict[str, dict[str, Any]] = {
    "lora in bf16": {**LORA, "tuning.mixed_precision": "bf16", "tuning.use_ema": True},
    "a word": {**LORA, "embedding.enabled": True, "concepts.0.instance_token": "sks", "embedding.ratio": 0.7},
    "full": {"tuning.text_encoder_ratio": 0.5},
    "full, little memory": {
        "memory.step_in_backward": True,
        "memory.bf16_weights": True,
        "tuning.mixed_precision": "bf16",
        "batching.gradient_checkpointing": True,
        "memory.unet_weights": "streamed",
    },
}


@pytest.mark.parametrize(
    ("device", "kind"),
    [
        pytest.param("cpu", "full, little memory", marks=pytest.mark.thorough),
        *(pytest.param("cuda", kind, marks=pytest.mark.gpu) for kind in RESUMED),
    ],
    indirect=["device"],  # the others are tested on the CPU in tests/engine
)
def test_pausing_changes_no_bit(
    kind: str, device: torch.device, projects: dict[str, Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `tuning.deterministic`; another seed gives other weights."""
    changes = {**EXACT, **RESUMED[kind], "intervals.max_train_steps": 5}
    whole, stopped = train(projects["sd1"], **changes), new_run(projects["sd1"], **changes)
    for step in (2, 4):
        with monkeypatch.context() as patch:
            ask = lambda hooks, at=step: {"pause"} if hooks.session.step == at else set()  # noqa: E731
            patch.setattr(worker.RunHooks, "requests", ask)
            assert run(stopped) == "paused"
    assert run(stopped) == "done"
    assert [event["step"] for event in told(stopped, "resumed")] == [2, 4]
    assert same(output(whole), output(stopped))
    assert not same(output(whole), output(train(projects["sd1"], **changes, **{"general.seed": 1})))


def run(job: Job) -> str:
    AcceleratorState._reset_state(reset_partial_state=True)  # each run has a process of its own
    return worker.run(job)


class CardWaits:
    """As tests/engine/waits.py, by the card itself: within it `found` gets a line for each time that somebody waits."""

    def __init__(self, on_card: Iterable[torch.Tensor]) -> None:
        self.found: list[str] = []
        self._caught = warnings.catch_warnings(record=True)
        self._seen: list[warnings.WarningMessage] = []

    def __enter__(self) -> CardWaits:
        torch.cuda.synchronize()
        seen = self._caught.__enter__()
        assert seen is not None
        self._seen = seen
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        return self

    def __exit__(self, *error: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")
        self._caught.__exit__(*error)
        said = [one for one in self._seen if "called a synchronizing" in str(one.message)]
        self.found += [f"{one.message} at {one.filename}:{one.lineno}" for one in said]


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)], indirect=True)
@pytest.mark.parametrize("kind", [*test_waits.KINDS, "traced"])
def test_nobody_waits_for_the_card(
    kind: str, device: torch.device, projects: dict[str, Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But streamed weights are settled once a step, as the CPU reads what comes back, and those of one block are
    compared once; and so is a step that is done again from its record."""
    monkeypatch.setattr(test_waits, "Waits", CardWaits)
    if kind == "traced":
        monkeypatch.setattr(traced_step, "EAGER_BATCHES", 0)
        monkeypatch.setattr(traced_step, "MIN_REMAINING_BATCHES", 1)
    found = test_waits.waits(projects["sd1"], monkeypatch, **test_waits.KINDS.get(kind, LORA))
    assert len(found) <= {"streamed": 4, "traced": 1}.get(kind, 0), found


@pytest.mark.parametrize("on_card", [False, pytest.param(True, marks=pytest.mark.gpu)])
def test_who_waits_for_the_card_is_seen(
    on_card: bool, projects: dict[str, Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a card what it would say is said for it."""
    if on_card and not torch.cuda.is_available():
        pytest.skip("there is no NVIDIA card here")
    if not on_card:
        without_card(monkeypatch)
        modes: list[str] = []
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    plain = step_metrics.StepMetrics.add_losses

    def reads(self: step_metrics.StepMetrics, losses: tuple[torch.Tensor, ...]) -> None:
        losses[0].item()
        if not on_card and modes[-1:] == ["warn"]:
            warnings.warn("the mode does not detect all synchronizing operations", stacklevel=1)  # said by PyTorch once
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        plain(self, losses)

    monkeypatch.setattr(step_metrics.StepMetrics, "add_losses", reads)
    monkeypatch.setattr(test_waits, "Waits", CardWaits)
    found = test_waits.waits(projects["sd1"], monkeypatch, **LORA)
    assert len(found) >= 3, "one for each step that is looked at"
    assert on_card or len(found) == 3, "and nothing else that PyTorch says"
    assert on_card or modes == ["warn", "default"]


def test_what_rests_leaves_the_card_and_comes_back(
    device: torch.device, projects: dict[str, Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a LoRA trains, the VAE and the text encoders lie in the computer's memory; while previews are drawn with
    them, they are on the card."""
    found: dict[str, set[str]] = {"steps": set(), "previews": set(), "unet": set()}
    end_step, load = step_metrics.StepMetrics.end_step, setup.load

    def lie(part: torch.nn.Module) -> set[str]:
        return {tensor.device.type for tensor in part.state_dict().values()}

    def looked(self: step_metrics.StepMetrics, norms: torch.Tensor) -> torch.Tensor:
        parts = self.session.model.parts
        found["steps"] |= lie(parts["vae"]) | lie(parts["text_encoder"]) | lie(parts["text_encoder_2"])
        found["unet"] |= lie(parts["unet"])
        return end_step(self, norms)

    def loaded(*arguments: Any) -> Any:
        model, accelerator = load(*arguments)
        model.vae.decoder.register_forward_hook(lambda part, *_: found["previews"].update(lie(part)))
        model.text_encoders["text_encoder_2"].register_forward_hook(
            lambda part, *_: found["previews"].update(lie(part))
        )
        return model, accelerator

    monkeypatch.setattr(step_metrics.StepMetrics, "end_step", looked)
    monkeypatch.setattr(setup, "load", loaded)
    some = {"intervals.max_train_steps": 2, "previews.count": 1, "previews.steps": 1}
    train(projects["sdxl"], **LORA, **some)
    assert found == {"steps": {"cpu"}, "previews": {device.type}, "unet": {device.type}}


@pytest.mark.thorough
def test_too_little_memory_leads_to_less_of_it(device: torch.device, projects: dict[str, Project]) -> None:
    """A card that has less than a plain step takes, and more than a checkpointed one: the run goes on with
    checkpointing, to the losses of one that was checkpointed from the beginning."""
    large = {"batching.train_batch_size": 4, "general.resolution": 128 if device.type == "cpu" else 384}
    large |= {"intervals.max_train_steps": 2, "pictures.cache_on_disk": True}
    train(projects["sd1"], **large)  # the pictures are encoded from here on
    with card(device) as its:
        free(device)
        its.peaks()
        train(projects["sd1"], **large)
        plain = its.peaks()[1]
        free(device)
        its.peaks()
        small = reported(projects["sd1"], **large, **{"batching.gradient_checkpointing": True})
        little = its.peaks()[1]
        print(f"{device.type}: {plain:,} bytes, checkpointed {little:,}")
        assert little < 0.9 * plain, "there is something between"
        free(device)
        its.limit((plain + little) // 2)
        short = reported(projects["sd1"], **large)
    said = [event["text"] for event in told(short, "warning")]
    assert len(said) == 1
    assert said[0].startswith("The memory was not enough while training")
    assert short.changes() == {"batching.gradient_checkpointing": True}
    ours, theirs = ([event["loss"] for event in told(job, "step")] for job in (short, small))
    assert ours[-2:] == pytest.approx(theirs, rel=1e-3)  # before it may have come as far as to the optimizer


def card(device: torch.device) -> Any:
    return Real() if device.type == "cuda" else Simulated()


class Real(Cuda):
    def __enter__(self) -> Card:
        return self

    def __exit__(self, *error: Any) -> None:
        self.limit(2**60)


def free(device: torch.device) -> None:
    import gc

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
