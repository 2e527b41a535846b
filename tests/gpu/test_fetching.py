"""Streamed weights that a card fetches while it computes: the losses are those of whole ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dreambooth.core.project import Project
from dreambooth.engine.families import weight_prefetch
from dreambooth.engine.training import traced_step
from tests.engine.runs import LORA, told
from tests.engine.simulated_streams import Late
from tests.gpu.conftest import reported
from tests.gpu.test_parity import EXACT, STEPS, off

CHECKPOINTED = {"batching.gradient_checkpointing": True}
KINDS: dict[str, dict[str, Any]] = {
    "lora": {**LORA, **CHECKPOINTED},
    "full": {**CHECKPOINTED, "memory.step_in_backward": True},
}


@pytest.mark.parametrize("is_traced", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_fetched_ahead_learns_as_what_is_there(
    kind: str, is_traced: bool, device: torch.device, projects: dict[str, Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU its second line of work is simulated."""
    monkeypatch.setattr(traced_step, "EAGER_BATCHES", 1)
    monkeypatch.setattr(traced_step, "MIN_REMAINING_BATCHES", 1)
    changes = {**KINDS[kind], "tuning.trace_steps": is_traced, "intervals.max_train_steps": STEPS[device.type]}
    plain = reported(projects["sd1"], **changes)

    copies, streams = Late if device.type == "cpu" else weight_prefetch.CopyStream, weight_prefetch.streams
    copied, copy = [0], copies.copy

    def counted(self: Any, place: Tensor, weight: Tensor) -> None:
        copied[0] += 1
        copy(self, place, weight)

    monkeypatch.setattr(copies, "copy", counted)
    monkeypatch.setattr(weight_prefetch, "streams", lambda device: Late() if device.type == "cpu" else streams(device))
    job = reported(projects["sd1"], **changes, **{"memory.unet_weights": "streamed"})
    assert not told(job, "warning"), "the first block that was fetched ahead was right"
    assert copied[0] > 10 * STEPS[device.type]
    ours, theirs = ([event["loss"] for event in told(one, "step")] for one in (job, plain))
    assert off(ours, theirs) <= EXACT
