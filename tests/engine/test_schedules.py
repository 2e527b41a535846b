"""Learning-rate curves, against PyTorch's own where it has them, and in units of images."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dreambooth.core.run_length import budget
from dreambooth.core.schedules import curve, rate_factor
from dreambooth.core.settings import parse
from dreambooth.core.settings.optimization import LearningRate

STEPS = 100


def points(steps: int = STEPS, **chosen: Any) -> list[float]:
    rates = LearningRate(**chosen)
    return [rate_factor(rates, step / steps) for step in range(steps)]


def theirs(make: Any, steps: int = STEPS) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, found = make(optimizer), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


SCHEDULERS = torch.optim.lr_scheduler
PYTORCHS = {
    "constant": lambda o: SCHEDULERS.ConstantLR(o, factor=1.0),
    "linear": lambda o: SCHEDULERS.LinearLR(o, 1.0, 0.0, total_iters=STEPS),
    "cosine": lambda o: SCHEDULERS.CosineAnnealingLR(o, STEPS),
    "cosine_with_restarts": lambda o: SCHEDULERS.CosineAnnealingWarmRestarts(o, STEPS // 2),
    "polynomial": lambda o: SCHEDULERS.PolynomialLR(o, STEPS, power=2.0),
}


@pytest.mark.parametrize("name", PYTORCHS)
def test_a_curve_is_pytorchs(name: str) -> None:
    assert points(scheduler=name) == pytest.approx(theirs(PYTORCHS[name]), abs=1e-6)


def test_one_cycle_is_pytorchs_but_for_its_last_point() -> None:
    """Theirs begins to fall a step earlier, as it counts from step to step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    fine = 10_000
    cycle = SCHEDULERS.OneCycleLR(optimizer, 1.0, total_steps=fine, final_div_factor=1e9, cycle_momentum=False)
    found = []
    for _ in range(fine):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(found) < fine:
            cycle.step()
    assert points(fine, scheduler="one_cycle") == pytest.approx(found, abs=1e-3)
    early = points(scheduler="one_cycle", warmup=0.1)
    assert early.index(max(early)) == 10


def test_rex_is_as_published() -> None:
    """(1 - p) / (1/2 + 1/2 (1 - p)): above a straight line all the way."""
    found = points(scheduler="rex")
    assert [found[0], found[50]] == pytest.approx([1, 2 / 3])
    assert all(rex > line for rex, line in zip(found[1:], points(scheduler="linear")[1:]))
    assert rate_factor(LearningRate(scheduler="rex"), 1.0) == 0


@pytest.mark.parametrize("name", [*PYTORCHS, "rex"])
def test_warm_up_works_with_each(name: str) -> None:
    warmed = points(scheduler=name, warmup=0.2)
    assert warmed[:20] == pytest.approx([step / 20 for step in range(20)])
    assert warmed[20] == 1
    rest = points(80, scheduler=name)
    assert warmed[20:] == pytest.approx(rest)


@pytest.mark.parametrize("name", ["linear", "cosine", "cosine_with_restarts", "polynomial", "rex", "one_cycle"])
def test_a_falling_rate_ends_at_its_least(name: str) -> None:
    assert rate_factor(LearningRate(scheduler=name, minimum=0.25), 1.0) == pytest.approx(0.25)
    assert min(points(scheduler=name, minimum=0.25)[40:]) >= 0.25


def test_cycles_and_power_do_what_they_say() -> None:
    jumps = points(scheduler="cosine_with_restarts", cycles=4)
    assert [step for step in range(1, STEPS) if jumps[step] > jumps[step - 1]] == [25, 50, 75]
    assert points(scheduler="polynomial", power=1.0) == pytest.approx(points(scheduler="linear"))
    assert points(scheduler="polynomial", power=3.0)[50] == pytest.approx(1 / 8)


CLASS = {"concepts.0.class_prompt": "a dog", "concepts.0.num_class_images_per": 10}


@pytest.mark.parametrize(
    "change", [{}, {"batching.train_batch_size": 4}, {"batching.gradient_accumulation_steps": 3}, CLASS]
)
def test_batch_accumulation_and_class_pictures_do_not_move_a_curve(change: dict[str, Any]) -> None:
    """With class pictures the predecessor's falling rates reached their end half-way."""
    settings = parse({"learning.scheduler": "cosine", "learning.lora_learning_rate": 0.1, **change})
    length = budget(settings, 12)
    drawn = curve(settings, length)
    assert [drawn[0]["images"], drawn[50]["images"], drawn[100]["images"]] == [0, 600, 1200]
    assert [drawn[point]["unet"] for point in (0, 50, 100)] == pytest.approx([0.1, 0.05, 0])
    seen = length.images_seen(length.steps // 2) / length.images
    assert rate_factor(settings.learning, seen) == pytest.approx(0.5 * (1 + math.cos(math.pi * seen)))


@pytest.mark.parametrize("until", [{"tuning.text_encoder_ratio": 0.5}, {"tuning.text_encoder_steps": 500}])
def test_the_curve_shows_where_the_text_encoder_ends(until: dict[str, float]) -> None:
    settings = parse(until)
    drawn = curve(settings, budget(settings, 10))
    assert [point["text_encoder"] for point in drawn] == [5e-5] * 50 + [0.0] * 51
    assert {point["unet"] for point in drawn} == {1e-4}
