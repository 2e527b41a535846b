"""Prodigy, whose distance stays on the device: the published implementation's steps, which nobody waits for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from prodigyopt import Prodigy as Published
from torch import Tensor, nn

from dreambooth.engine.bench.operations import Operations
from dreambooth.engine.training import optimizers, prodigy
from dreambooth.engine.training.prodigy import Prodigy
from tests.engine.runs import tiny_project, told, train
from tests.engine.simulated_card import simulated_card
from tests.engine.waits import Waits

SHAPES = [(16, 24), (16, 24), (8, 4, 3, 3), (24,), (), (20, 5)]
STEPS = 150


def weights() -> list[nn.Parameter]:
    """Half of them begin with zeros, as a LoRA's do, one with some. In double precision: the distance multiplies
    differences."""
    generator = torch.Generator().manual_seed(1)
    made = [torch.randn(shape, generator=generator).double() for shape in SHAPES]
    made[0][:3] = 0
    return [nn.Parameter(torch.zeros_like(one) if number % 2 else one) for number, one in enumerate(made)]


def published(groups: list[dict[str, Any]], **more: Any) -> torch.optim.Optimizer:
    advised = {"use_bias_correction": True, "safeguard_warmup": True}
    return Published(groups, lr=1.0, **advised, **more)  # type: ignore[no-any-return]


def groups_of(some: list[nn.Parameter], rates: tuple[float, float] = (0.5, 0.5)) -> list[dict[str, Any]]:
    parts = some[:4], some[4:]
    decays = 0.05, 0.0
    return [{"params": p, "lr": r, "weight_decay": d} for p, r, d in zip(parts, rates, decays)]


def walk(optimizer: torch.optim.Optimizer, some: list[nn.Parameter], steps: range) -> None:
    """Towards ones, with some noise; now and then a weight has no gradient."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for number, weight in enumerate(some):
            noise = torch.randn(weight.shape, generator=generator)
            weight.grad = None if (step + number) % 7 == 3 else 2 * (weight.detach() - 1) + 0.3 * noise.double()
        optimizer.step()


def way(some: list[nn.Parameter]) -> Tensor:
    return torch.cat([(one.detach() - start.detach()).flatten() for one, start in zip(some, weights())])


@pytest.mark.parametrize(("rates", "d_coef"), [((0.5, 0.5), 1.0), ((0.5, 0.0), 1.0), ((0.5, 0.5), 2.0)])
def test_it_takes_the_published_steps(
    rates: tuple[float, float], d_coef: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prodigy, "VALUES_AT_ONCE", 500)
    ours, theirs = weights(), weights()
    one = Prodigy(groups_of(ours, rates), d_coef=d_coef)
    other = published(groups_of(theirs, (0.5, 0.5)), d_coef=d_coef)
    for group, rate in zip(other.param_groups, rates):  # it takes no 0 to begin with
        group["lr"] = rate
    walk(one, ours, range(STEPS))
    walk(other, theirs, range(STEPS))
    assert float(one.param_groups[0]["d"]) == pytest.approx(other.param_groups[0]["d"], rel=1e-9)
    assert float(one.param_groups[0]["d"]) > 100 * 1e-6, "it has found something"
    assert (way(ours) - way(theirs)).norm() < 1e-9 * way(theirs).norm()


def test_it_goes_on_from_a_published_state_and_bit_for_bit_from_its_own() -> None:
    whole, middle, old, fresh = weights(), weights(), weights(), weights()
    walk(Prodigy(groups_of(whole)), whole, range(STEPS))
    before = Prodigy(groups_of(middle))
    walk(before, middle, range(60))
    goes_on = Prodigy(groups_of(middle))
    optimizers.restore(goes_on, before.state_dict())
    walk(goes_on, middle, range(60, STEPS))
    assert all(torch.equal(one, other) for one, other in zip(whole, middle, strict=True))
    theirs = published(groups_of(old))
    walk(theirs, old, range(60))
    taken = Prodigy(groups_of(old))
    optimizers.restore(taken, theirs.state_dict())
    walk(taken, old, range(60, STEPS))
    walk(published(groups_of(fresh)), fresh, range(STEPS))
    assert (way(old) - way(fresh)).norm() < 1e-9 * way(fresh).norm()


def test_gradients_of_nothing_but_zeros_change_nothing() -> None:
    some = weights()
    optimizer = Prodigy(groups_of(some, (1.0, 1.0)))
    for weight in some:
        weight.grad = torch.zeros_like(weight)
    optimizer.param_groups[0]["weight_decay"] = 0.0
    optimizer.step()
    assert not way(some).any()
    assert float(optimizer.param_groups[0]["d"]) == prodigy._D0
    walk(optimizer, some, range(STEPS))
    assert way(some).isfinite().all() and way(some).norm() > 0.1


def test_a_step_without_a_rate_is_none() -> None:
    """Such as the first one of a warm-up: the next is as long as it would have been."""
    some, others = weights(), weights()
    warmed, plain = Prodigy(groups_of(some, (0.0, 0.0))), Prodigy(groups_of(others))
    walk(warmed, some, range(3))
    for group in warmed.param_groups:
        group["lr"] = 0.5
    for optimizer, those in ((warmed, some), (plain, others)):
        walk(optimizer, those, range(3, 9))
    assert all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def test_rates_that_differ_are_refused() -> None:
    some = weights()
    optimizer = Prodigy(groups_of(some, (1.0, 0.5)))
    with pytest.raises(ValueError, match="one rate"):
        walk(optimizer, some, range(1))


def test_forty_weights_take_the_operations_of_one_and_nobody_waits() -> None:
    counts = []
    for number in (1, 40):
        with simulated_card():
            some = [nn.Parameter(torch.ones(6, 9, device="cuda")) for _ in range(number)]
            optimizer = Prodigy([{"params": some, "lr": 1.0, "weight_decay": 0.1}])
            for step in range(3):
                for weight in some:
                    weight.grad = torch.ones_like(weight)
                held = [value for kept in optimizer.state.values() for value in kept.values()]
                gradients = [weight.grad for weight in some if weight.grad is not None]
                with Waits([*some, *gradients, *held]) as waits, Operations() as counted:
                    optimizer.step()
                assert bool(waits.found) == (step == 0), "once in a run, for where the weights begin"
        counts.append(counted.count)
    assert counts[0] == counts[1] < 60


def test_its_coefficient_reaches_it_and_a_run_tells_how_far_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rate of 1 all along would tell nobody anything."""
    monkeypatch.setattr(prodigy, "_D0", 1e-3)
    coefficients, begun = [], Prodigy.__init__

    def watched(self: Prodigy, *arguments: Any, **more: Any) -> None:
        begun(self, *arguments, **more)
        coefficients.append(self.param_groups[0]["d_coef"])

    monkeypatch.setattr(Prodigy, "__init__", watched)
    chosen = {"general.method": "lora", "lora.rank": 2, "optimizer.name": "prodigy", "optimizer.d_coef": 2.0}
    job = train(tiny_project(tmp_path), **chosen, **{"learning.lora_learning_rate": 0.5})
    assert coefficients[-1] == 2.0  # the first is tried out before
    rate = told(job, "step")[-1]["rate"]
    assert 0.499e-3 < rate < 0.5 and told(job, "step")[-1]["rates"] == {"unet": rate}
