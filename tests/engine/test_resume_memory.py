"""A run that is killed in the middle of its backward pass, half of its weights changed already, goes on to the very
weights of one that nobody killed: with each way of holding less memory."""

from __future__ import annotations

from typing import Any

import pytest
from accelerate.state import AcceleratorState

from dreambooth.core.job_folder import Job
from dreambooth.core.project import Project
from dreambooth.engine import worker
from dreambooth.engine.training import fused_backward, gradient_clipping
from dreambooth.engine.training.fused_backward import FusedBackward
from tests.engine.runs import LORA, new_run, output, same, tiny_project, told, train

FUSED = {"memory.step_in_backward": True}
RESTING = {**LORA, **FUSED, "batching.gradient_checkpointing": True, "lora.dropout": 0.2}
KINDS: dict[str, dict[str, Any]] = {
    "adafactor in bf16": {
        **FUSED,
        "optimizer.name": "adafactor",
        "memory.bf16_weights": True,
        "tuning.mixed_precision": "bf16",
        "tuning.use_ema": True,
    },
    "average and text": {
        **FUSED,
        "optimizer.name": "adamw_8bit",
        "tuning.use_ema": True,
        "tuning.text_encoder_ratio": 0.7,
        "batching.gradient_checkpointing": True,
    },
    "int8": {**RESTING, "memory.unet_weights": "int8"},
    "streamed": {**RESTING, "memory.unet_weights": "streamed", "tuning.use_ema": True},
    "full streamed": {
        **FUSED,
        "optimizer.name": "adamw_8bit",
        "memory.bf16_weights": True,
        "tuning.mixed_precision": "bf16",
        "tuning.use_ema": True,
        "batching.gradient_checkpointing": True,
        "memory.unet_weights": "streamed",
    },
    "added up": {
        **LORA,
        "memory.unet_weights": "int8",
        "batching.gradient_checkpointing": True,
        "batching.gradient_accumulation_steps": 2,
        "intervals.num_train_epochs": 2,
    },
}
STEPS = {"batching.train_batch_size": 1, "learning.scheduler": "cosine", "intervals.save_state_every_steps": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return tiny_project(tmp_path_factory.mktemp("resume-memory"))


class Killed(BaseException):
    """As if by the system."""


@pytest.mark.parametrize("kind", KINDS)
def test_killed_in_the_backward_pass(kind: str, made: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_backward, "PORTION_BYTES", 20_000)  # of very small models several a step
    changes = {**STEPS, **KINDS[kind]}
    counted = count_portions(monkeypatch)
    whole = output(train(made, **changes))
    fused, portions = kind != "added up", counted[0]
    assert not fused or portions > 5 * 2, "a step has several portions, so that one can be killed between them"
    job = new_run(made, **changes)
    killed_at = portions // 2 if fused else 0
    kill(job, monkeypatch, killed_at)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert worker.run(job) == "done"
    assert [event["step"] for event in told(job, "resumed")] == [2]
    assert same(whole, output(job))


def count_portions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    counted, plain = [0], FusedBackward._apply_portion

    def apply_some(self: FusedBackward, *arguments: Any) -> None:
        counted[0] += 1
        plain(self, *arguments)

    monkeypatch.setattr(FusedBackward, "_apply_portion", apply_some)
    return counted


def kill(job: Job, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Runs it until its portion `at` is applied, or with none until its third step's gradients are there."""
    with monkeypatch.context() as patch:
        if at:
            counted, plain = count_portions(patch), FusedBackward._apply_portion

            def apply_some(self: FusedBackward, *arguments: Any) -> None:
                plain(self, *arguments)
                if counted[0] == at:
                    raise Killed

            patch.setattr(FusedBackward, "_apply_portion", apply_some)
        else:
            clip = gradient_clipping.clip

            def clipped(session: Any) -> Any:
                if session.step == 2:
                    raise Killed
                return clip(session)

            patch.setattr(gradient_clipping, "clip", clipped)
        AcceleratorState._reset_state(reset_partial_state=True)
        with pytest.raises(Killed):
            worker.run(job)
