"""A run by several processes learns what one process learns."""

from __future__ import annotations

from typing import Any

import pytest

from dreambooth.core.project import Project
from tests.engine.runs import LORA, output, same, tiny_project, train

SHARED = {
    "batching.train_batch_size": 1,
    "batching.gradient_accumulation_steps": 2,
    "intervals.max_train_steps": 4,
}


@pytest.fixture(scope="module")
def star(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return tiny_project(tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize(
    "settings",
    [
        {"tuning.text_encoder_ratio": 0.5, "tuning.use_ema": True},
        {"memory.bf16_weights": True, "tuning.mixed_precision": "bf16", "optimizer.name": "adafactor"},
        {**LORA, "lora.dropout": 0.3, "concepts.0.class_mode": "prediction", "concepts.0.class_prompt": "a star"},
    ],
    ids=["full", "bf16", "lora"],
)
def test_two_processes_learn_what_one_learns(star: Project, settings: dict[str, Any]) -> None:
    """To the bit, as a sum of two gradients is the same in either order."""
    alone = output(train(star, **SHARED, **settings))
    assert same(alone, output(train(star, **SHARED, **settings, **{"batching.num_processes": 2})))
