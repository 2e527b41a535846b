"""Between two reports nobody waits for the card."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dreambooth.core.project import Project
from dreambooth.engine import families
from dreambooth.engine.checkpoints.source import open_model
from dreambooth.engine.drawing.sampling import Known, draw
from dreambooth.engine.drawing.sampling_choice import Sampling
from dreambooth.engine.tracing.program import Program
from dreambooth.engine.training import loop, step_metrics, traced_step
from dreambooth.engine.training.session import Session
from tests.engine.runs import LORA, tiny_project, train
from tests.engine.waits import Waits

KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": LORA,
    "dora": {**LORA, "lora.kind": "dora"},
    "max norm": {**LORA, "lora.max_norm": 0.01},
    "text": {"tuning.text_encoder_ratio": 1.0, "captions.dropout": 0.5},
    "text, which rests": {"tuning.text_encoder_ratio": 0.2},
    "a word": {**LORA, "embedding.enabled": True, "concepts.0.instance_token": "sks"},
    "class by prediction": {
        **LORA,
        "concepts.0.class_mode": "prediction",
        "concepts.0.class_prompt": "a photo of a star",
    },
    "average": {"tuning.use_ema": True, "batching.gradient_accumulation_steps": 2},
    "in backward": {"memory.step_in_backward": True},
    "bf16": {"memory.bf16_weights": True, "tuning.mixed_precision": "bf16"},
    "lion": {"optimizer.name": "lion"},
    "adafactor": {"optimizer.name": "adafactor"},
    "came": {"optimizer.name": "came"},
    "prodigy": {"optimizer.name": "prodigy", "learning.learning_rate": 1.0},
    "schedule-free": {"optimizer.name": "adamw_schedule_free"},
    "objective": {
        "objective.weighting": "min_snr",
        "objective.offset_noise": 0.1,
        "objective.input_perturbation": 0.1,
        "objective.timesteps": "logit_normal",
        "concepts.0.loss_weight": 2.0,
    },
    "streamed": {
        "memory.unet_weights": "streamed",
        "memory.step_in_backward": True,
        "batching.gradient_checkpointing": True,
        "memory.bf16_weights": True,
        "tuning.mixed_precision": "bf16",
    },
    "checkpointed": {"batching.gradient_checkpointing": True},
}


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Project]:
    folder = tmp_path_factory.mktemp("waits")
    return {family: tiny_project(folder, family) for family in ("sd1", "sdxl", "sd1-inpainting")}


def waits(made: Project, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> list[str]:
    """Who waits in the second to the fourth step of a run of five."""
    monkeypatch.setattr(step_metrics, "REPORT_SECONDS", 1e9)
    seen: list[Waits] = []
    set_rates, do_what_is_due = loop._set_rates, loop._do_what_is_due

    def first(session: Session) -> None:
        if session.step == 1:
            seen.append(Waits(on_card(session)))
            seen[0].__enter__()
        set_rates(session)

    def last(session: Session, *arguments: Any) -> bool:
        ends = do_what_is_due(session, *arguments)
        if session.step == 4:
            seen[0].__exit__(None, None, None)
        return ends

    monkeypatch.setattr(loop, "_set_rates", first)
    monkeypatch.setattr(loop, "_do_what_is_due", last)
    train(made, **{"batching.train_batch_size": 1, "intervals.max_train_steps": 5, **changes})
    return seen[0].found


def on_card(session: Session) -> Iterator[torch.Tensor]:
    """What lies on the card when a step begins."""
    for part in session.model.parts.values():
        yield from part.state_dict().values()
    for some in filter(None, (session.instances, session.priors)):
        yield from (*some.mean, *some.std, *(some.mask or []))
        if some.surroundings:
            yield from (*(some.surroundings.masked or []), *some.surroundings.nothing)
    yield from session.texts.tokens
    for table in filter(None, (session.texts.table, session.texts.base_table, session.texts.frozen_table)):
        yield from (one for one in (table.hidden, table.pooled, table.mask) if one is not None)
    if session.ema:
        yield from session.ema.average.values()
    for kept in session.optimizer.state.values():
        yield from (value for value in kept.values() if isinstance(value, torch.Tensor))


@pytest.mark.parametrize("kind", KINDS)
def test_between_reports_nobody_waits_for_the_card(
    kind: str, projects: dict[str, Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert waits(projects["sd1"], monkeypatch, **KINDS[kind]) == []


ONE_OF_TWO = {"tuning.text_encoder_ratio": 1.0, "tuning.text_encoders": "second"}


@pytest.mark.parametrize(("kind", "more"), [("sdxl", {}), ("sdxl", ONE_OF_TWO), ("sd1-inpainting", {})])
def test_nor_with_another_model(
    kind: str, more: dict[str, Any], projects: dict[str, Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert waits(projects[kind], monkeypatch, **LORA, **more) == []


@pytest.mark.parametrize("changes", [LORA, {"tuning.text_encoder_ratio": 1.0}])
def test_a_traced_step_waits_for_nothing_and_its_check_once(
    changes: dict[str, Any], projects: dict[str, Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traced_step, "EAGER_BATCHES", 0)
    monkeypatch.setattr(traced_step, "MIN_REMAINING_BATCHES", 1)
    runs = []
    run = Program.__call__
    monkeypatch.setattr(Program, "__call__", lambda self, given: runs.append(self) or run(self, given))
    (found,) = waits(projects["sdxl"], monkeypatch, **changes)
    assert found.startswith("tolist at traced_step.py")
    assert len(runs) == 4


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd1-inpainting"])
def test_a_picture_of_more_steps_waits_no_more_often(family: str, projects: dict[str, Project]) -> None:
    """For its noise and its pixels, but not at each step."""
    model = families.load(open_model(projects[family]), torch.float32)
    known, found = Known(model), []
    for steps in (2, 5):
        with Waits(tensor for part in model.parts.values() for tensor in part.state_dict().values()) as waits:
            draw(model, ["a star"], [1], Sampling(64, 64, steps), known=known)
        found.append(waits.found)
    assert len(found[0]) >= len(found[1]) > 0


def test_who_waits_is_seen(projects: dict[str, Project], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = step_metrics.StepMetrics.add_losses

    def reads(self: step_metrics.StepMetrics, losses: tuple[torch.Tensor, ...]) -> None:
        losses[0].item()
        torch.zeros(3).to(self.session.model.device)
        plain(self, losses)

    monkeypatch.setattr(step_metrics.StepMetrics, "add_losses", reads)
    found = {one.split(" at ")[0] for one in waits(projects["sd1"], monkeypatch)}
    assert found == {"_local_scalar_dense", "to(device)"}
