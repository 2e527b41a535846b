"""The counting behind the planner's table: what is counted without a card is what a real step holds, byte for byte."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from dreambooth.core.memory import footprint_table as table
from dreambooth.core.models import anatomy
from dreambooth.engine.bench import footprint as counting
from dreambooth.engine.bench import random_model
from dreambooth.engine.bench.footprint import Point, Step
from dreambooth.engine.bench.live_tensors import Live

SMALL = {"block_out_channels": (32, 32, 64, 64), "cross_attention_dim": 32, "attention_head_dim": 8}


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(random_model._UNETS, "sd1", SMALL)


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize(("kind", "layers", "precision"), [("full", "all", "no"), ("lora", "transformer", "mixed")])
def test_without_a_card_the_same_is_counted(kind: str, layers: str, precision: str, checkpointed: bool) -> None:
    step, point = Step("sd1", kind, layers, precision, checkpointed), Point(2, 16, 0 if kind == "full" else 4)
    counted, done = counting.count(step, point), counting.count(step, point, fake=False)
    assert counted.gradients == done.gradients > 0
    assert counted.peak == pytest.approx(done.peak, rel=0.02)
    assert counted.moments == pytest.approx(done.moments, rel=0.05)


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("checkpointed", [False, True])
def test_of_an_embedding_alone_the_same_is_counted(checkpointed: bool) -> None:
    """No weight has a gradient, and yet what leads to the text is held."""
    step, point = Step("sd1", "embedding", "none", "mixed", checkpointed), Point(2, 16)
    counted, done = counting.count(step, point), counting.count(step, point, fake=False)
    assert counted.gradients == done.gradients == 0
    assert counted.moments[:2] == pytest.approx(done.moments[:2], rel=0.05)
    assert counted.moments[1] > 0


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("checkpointed", [False, True])
def test_of_a_far_smaller_model_an_embeddings_step_is_told_within_a_tenth(checkpointed: bool) -> None:
    step, point = Step("sd1", "embedding", "none", "mixed", checkpointed), Point(2, 64)
    parts = random_model.modules("sd1").items()
    shapes = {name: {key: tuple(t.shape) for key, t in part.state_dict().items()} for name, part in parts}
    size = table.StepSize(anatomy.of_shapes(shapes), "sd1", point.batch, point.side**2, 0)
    end = "checkpointed" if checkpointed else "whole"
    told = table.step_moments(table.StepKind(step.kind, step.layers, step.precision), end, size)
    assert max(held for _, held in told) == pytest.approx(counting.count(step, point).peak, rel=0.1)


def test_what_is_gone_is_not_counted() -> None:
    weight = nn.Parameter(torch.ones(1000))
    with Live([weight], [weight]) as live:
        kept = weight * 2
        view = kept[10:]
        assert live.now == 4000
        del kept
        assert live.now == 4000, "a part of it is still there"
        del view
        assert live.now == 0
        live.is_backward = True
        (weight * 3).sum().backward()
    assert live.gradients == 4000
    assert 8000 > live.peak >= 4000, "the product is gone before the gradient is there"


def test_the_planes_meet_what_they_were_not_laid_through() -> None:
    """A point of SD 1 at full size that is in no row of the table, counted anew."""
    lora = Step("sd1", "lora", "transformer", "mixed", True), Point(3, 40, 32)
    word = Step("sd1", "embedding", "none", "mixed", True), Point(3, 40)
    for step, point in (lora, word):
        row = table.families()["sd1"]["steps"][step.name]
        told = [float(np.dot(plane, point.features)) for plane in row["bytes"]]
        assert told == pytest.approx(counting.count(step, point).moments[: len(told)], rel=0.03)
