"""The small parts of training, each against its definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dreambooth.core.layout import MINIATURE
from dreambooth.engine import families
from dreambooth.engine.checkpoints.source import open_source
from dreambooth.engine.data.order import Order
from dreambooth.engine.sampling import make_scheduler
from dreambooth.engine.training import objective
from dreambooth.engine.training.ema import Ema
from dreambooth.engine.training.schedules import rate_factor


def test_noise_is_added_as_diffusers_adds_it() -> None:
    scheduler = make_scheduler("ddim", families.skeleton(open_source(MINIATURE)))
    x_0, eps, t = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([0, 500, 999])
    ours = objective.add_noise(x_0, eps, scheduler.alphas_cumprod[t])
    assert torch.allclose(ours, scheduler.add_noise(x_0, eps, t), atol=1e-6)


def test_the_prior_counts_by_its_weight_and_rows_stay_apart() -> None:
    each = torch.tensor([1.0, 3.0, 10.0, 20.0, 60.0])
    loss, subject, prior = objective.dreambooth_loss(each, 2, 0.5)
    assert (subject.item(), prior.item(), loss.item()) == (2.0, 30.0, 17.0)
    loss, subject, prior = objective.dreambooth_loss(each[:2], 2, 0.5)
    assert (loss.item(), subject.item(), prior.item()) == (2.0, 2.0, 0.0)


def test_the_loss_is_the_mean_square_of_each_picture() -> None:
    a, b = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    assert torch.allclose(objective.squared_error(a, b).mean(), torch.nn.functional.mse_loss(a, b))


@pytest.mark.parametrize(
    ("name", "at_start", "in_the_middle", "at_end"),
    [("constant", 1, 1, 1), ("linear", 1, 0.5, 0), ("cosine", 1, 0.5, 0)],
)
def test_schedules(name: str, at_start: float, in_the_middle: float, at_end: float) -> None:
    points = [rate_factor(name, p, 0.0) for p in (0.0, 0.5, 1.0)]
    assert points == pytest.approx([at_start, in_the_middle, at_end])
    assert [rate_factor(name, p, 0.2) for p in (0.0, 0.1, 0.2)] == pytest.approx([0, 0.5, 1])


def test_ema_starts_short_and_keeps_to_its_decay() -> None:
    weights = {"w": torch.zeros(1)}
    ema = Ema(weights, decay=0.9)
    expected = 0.0
    for n in range(1, 200):
        weights["w"].fill_(float(n))
        ema.update(weights)
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * n
    assert ema.average["w"].item() == pytest.approx(expected, rel=1e-4)
    with ema.applied(weights):
        assert weights["w"].item() == pytest.approx(expected, rel=1e-4)
    assert weights["w"].item() == 199


@given(st.integers(1, 12), st.integers(0, 30), st.integers(1, 5), st.integers(0, 2**31 - 1))
def test_every_picture_is_seen_once_in_each_pass(count: int, priors: int, size: int, seed: int) -> None:
    order = Order((0,) * count, (0,) * priors, seed)
    seen, paired = [], []
    for position in range(0, count * size * 3, size):
        instances, classes = order.batch(position, size)
        seen += instances.tolist()
        paired += classes.tolist()
    for start in range(0, len(seen) - count + 1, count):
        assert sorted(seen[start : start + count]) == list(range(count))
    assert len(paired) == (len(seen) if priors else 0)
    for start in range(0, len(paired) - priors + 1, priors or 1):
        assert sorted(paired[start : start + priors]) == list(range(priors))


def test_class_pictures_belong_to_the_same_concept() -> None:
    order = Order((0, 1, 2), (1, 1, 0), seed=3)
    for position in range(30):
        instances, classes = order.batch(position, 1)
        concept = int(instances[0])
        assert [(1, 1, 0)[i] for i in classes.tolist()] == ([] if concept == 2 else [concept])


def test_the_order_follows_from_the_seed() -> None:
    def order(seed: int) -> list[int]:
        return [int(Order((0,) * 9, (), seed).batch(p, 1)[0]) for p in range(40)]

    assert order(1) == order(1) != order(2)
