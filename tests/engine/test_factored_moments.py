"""Adafactor and CAME, whose weights of the same sides change together: each as if it were alone, and as published."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.optimization import Adafactor as TransformersAdafactor

from dreambooth.engine.bench.operations import Operations
from dreambooth.engine.training import factored_moments, optimizers
from dreambooth.engine.training.adafactor import Adafactor
from dreambooth.engine.training.came import CAME
from tests.engine.simulated_card import simulated_card
from tests.engine.waits import Waits

# The same sides in one shape and in another, kernels, one side, none, one value, and one that is alone.
MATRICES = [(24, 40)] * 3 + [(24, 40, 1, 1), (8, 4, 3, 3), (8, 4, 3, 3), (8, 36)]
SHAPES = [*MATRICES, (40,), (40,), (), (), (1,), (1, 1), (5, 7)]
Make = Callable[..., torch.optim.Optimizer]


def weights(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def gradients(step: int) -> list[Tensor | None]:
    """Of a step; some weights have none in some steps, and some are far smaller or nothing but zeros."""
    generator = torch.Generator().manual_seed(100 + step)
    found: list[Tensor | None] = [torch.randn(shape, generator=generator) for shape in SHAPES]
    for number, gradient in enumerate(found):
        assert gradient is not None
        gradient *= (1.0, 1e-4, 30.0)[number % 3]
        if (number + step) % 5 == 0 and step:
            found[number] = None
    found[0] = torch.zeros(SHAPES[0])
    return found


def give(some: list[nn.Parameter], step: int) -> None:
    for weight, gradient in zip(some, gradients(step)):
        weight.grad = None if gradient is None else gradient.reshape(weight.shape).to(weight.dtype)


def groups_of(some: list[nn.Parameter]) -> list[dict[str, Any]]:
    """Two, each with a rate and a weight decay of its own."""
    return [
        {"params": some[::2], "lr": 1e-2, "weight_decay": 0.1},
        {"params": some[1::2], "lr": 3e-2, "weight_decay": 0.0},
    ]


def walked(make: Make, some: list[nn.Parameter], steps: int = 6) -> torch.optim.Optimizer:
    optimizer = make(groups_of(some))
    for step in range(steps):
        give(some, step)
        optimizer.step()
    return optimizer


def transformers_adafactor(groups: list[dict[str, Any]], **more: Any) -> torch.optim.Optimizer:
    return TransformersAdafactor(groups, scale_parameter=False, relative_step=False, warmup_init=False, **more)


def as_matrix(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach().clone().flatten(1) if weight.dim() > 2 else weight.detach().clone())


@pytest.mark.parametrize(("beta1", "epsilon"), [(None, 1e-30), (0.9, 1e-30), (None, 0.1)])
def test_adafactor_is_that_of_transformers(beta1: float | None, epsilon: float) -> None:
    """Which is given kernels as the matrices that they count as here."""
    ours, theirs = weights(), [as_matrix(weight) for weight in weights()]
    walked(lambda groups: Adafactor(groups, beta1=beta1, eps=epsilon), ours)
    walked(lambda groups: transformers_adafactor(groups, beta1=beta1, eps=(epsilon, 1e-3)), theirs)
    before = weights()
    for one, other, start in zip(ours, theirs, before, strict=True):
        torch.testing.assert_close(one.reshape(other.shape), other, rtol=1e-5, atol=1e-6)
        assert not torch.equal(one, start)


class PlainCame:
    """Algorithm 2 of arXiv 2307.02047 for one weight as (out, everything else), in double precision."""

    def __init__(self, weight: Tensor, rate: float, decay: float) -> None:
        self.shape, self.value = weight.shape, weight.detach().double().flatten(min(1, max(weight.dim() - 1, 0)))
        self.rate, self.decay, self.mean = rate, decay, torch.zeros_like(self.value)
        self.spread, self.disagreement = ([torch.zeros(()).double(), torch.zeros(()).double()] for _ in range(2))

    def step(self, gradient: Tensor) -> None:
        gradient = gradient.double().reshape(self.value.shape)
        step = gradient / self._follow(self.spread, gradient**2 + 1e-30, 0.999).sqrt()
        step = step / max(1.0, step.square().mean().sqrt().item())
        self.mean = 0.9 * self.mean + 0.1 * step
        unsure = torch.ones(()).double()  # the authors' implementation has it for matrices alone
        if step.dim() == 2:
            unsure = self._follow(self.disagreement, (step - self.mean) ** 2 + 1e-16, 0.9999)
        self.value = self.value - self.rate * (self.mean / unsure.sqrt() + self.decay * self.value)

    def _follow(self, kept: list[Tensor], squares: Tensor, beta: float) -> Tensor:
        if squares.dim() < 2:
            kept[0] = beta * kept[0] + (1 - beta) * squares
            return kept[0]
        for side in (0, 1):
            kept[side] = beta * kept[side] + (1 - beta) * squares.mean(1 - side)
        return torch.outer(kept[0], kept[1]) / kept[0].mean()


def test_came_is_the_published_algorithm() -> None:
    ours = weights()
    plain = [PlainCame(weight, (1e-2, 3e-2)[n % 2], (0.1, 0.0)[n % 2]) for n, weight in enumerate(ours)]
    walked(CAME, ours)
    for step in range(6):
        for one, gradient in zip(plain, gradients(step)):
            if gradient is not None:
                one.step(gradient)
    for weight, one in zip(ours, plain, strict=True):
        torch.testing.assert_close(weight.double(), one.value.reshape(one.shape), rtol=1e-4, atol=1e-5)


MAKES: dict[str, Make] = {
    "adafactor": Adafactor,
    "adafactor, smooth": lambda groups: Adafactor(groups, beta1=0.9),
    "came": CAME,
}


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", MAKES)
def test_a_weight_does_not_feel_those_beside_it(kind: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit: so the step in the backward pass, which does other weights together, gives the same ones."""
    shapes = [*SHAPES, (300, 500), (300, 500), (300, 500)]
    monkeypatch.setattr("tests.engine.test_factored_moments.SHAPES", shapes)
    together, alone, backwards = weights(), weights(), weights()
    walked(MAKES[kind], together)
    optimizer = MAKES[kind](groups_of(backwards))
    for step in range(6):
        give(backwards, step)
        every = list(optimizer.param_groups)
        for group in reversed(every):
            optimizer.param_groups, held = [group], group["params"]
            for some in (held[3:], held[:3]):
                group["params"] = some
                optimizer.step()
            group["params"] = held
        optimizer.param_groups = every
    monkeypatch.setattr(factored_moments, "VALUES_AT_ONCE", 1)
    walked(MAKES[kind], alone)
    assert all(torch.equal(one, other) for one, other in zip(together, alone, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(together, backwards, strict=True))


def test_no_more_values_are_stacked_than_said(monkeypatch: pytest.MonkeyPatch) -> None:
    some = weights()
    give(some, 0)
    monkeypatch.setattr(factored_moments, "VALUES_AT_ONCE", 2 * 24 * 40)
    lists = list(factored_moments.stackable(some))
    assert all(len(one) == 1 or sum(w.numel() for w in one) <= 2 * 24 * 40 for one in lists)
    assert [len(one) for one in lists if one[0].numel() == 24 * 40] == [2, 2]
    assert sum(map(len, lists)) == len(some)


@pytest.mark.parametrize(("kind", "each"), [("adafactor", 21), ("adafactor, smooth", 23), ("came", 36)])
def test_forty_weights_take_the_operations_of_one(kind: str, each: int) -> None:
    counts = []
    for number in (1, 40):
        some = [nn.Parameter(torch.ones(6, 9)) for _ in range(number)]
        optimizer = MAKES[kind]([{"params": some, "lr": 1e-2, "weight_decay": 0.1}])
        for _ in range(2):
            for weight in some:
                weight.grad = torch.ones_like(weight)
            with Operations() as counted:
                optimizer.step()
        counts.append(counted.count)
    assert counts[0] == counts[1] <= each + 2  # PyTorch's own two marks for its profiler


@pytest.mark.parametrize("kind", MAKES)
def test_nobody_waits_for_the_card(kind: str) -> None:
    with simulated_card():
        some = [nn.Parameter(weight.data.to("cuda")) for weight in weights()]
        optimizer = MAKES[kind](groups_of(some))
        for step in range(2):
            for weight, gradient in zip(some, gradients(step)):
                weight.grad = None if gradient is None else gradient.to("cuda")
            with Waits([*some, *(weight.grad for weight in some if weight.grad is not None)]) as waits:
                optimizer.step()
            assert waits.found == []


@pytest.mark.parametrize("kind", MAKES)
def test_in_bf16_it_keeps_its_means_in_full_precision(kind: str) -> None:
    some, exact = weights(torch.bfloat16), [nn.Parameter(w.detach().float()) for w in weights(torch.bfloat16)]
    optimizer = walked(MAKES[kind], some)
    walked(MAKES[kind], exact)
    kept = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    assert all(value.dtype == torch.float32 for value in kept)
    moved = torch.cat([(one.detach().float() - other.detach()).flatten() for one, other in zip(some, exact)])
    assert moved.norm() / torch.cat([one.detach().flatten() for one in exact]).norm() < 0.02


@pytest.mark.parametrize("kind", MAKES)
def test_it_goes_on_from_its_state_bit_for_bit(kind: str) -> None:
    whole, paused = weights(), weights()
    walked(MAKES[kind], whole)
    saved = walked(MAKES[kind], paused, steps=3).state_dict()
    goes_on = MAKES[kind](groups_of(paused))
    optimizers.restore(goes_on, saved)
    for step in range(3, 6):
        give(paused, step)
        goes_on.step()
    assert all(torch.equal(one, other) for one, other in zip(whole, paused, strict=True))


@pytest.mark.parametrize("beta1", [None, 0.9])
def test_adafactor_goes_on_from_a_state_of_transformers(beta1: float | None) -> None:
    """As runs saved it that began before: matrices and vectors as if nothing had changed, kernels with what their means
    stood for."""
    whole, paused = weights(), weights()
    walked(lambda groups: transformers_adafactor(groups, beta1=beta1), whole, steps=6)
    saved = walked(lambda groups: transformers_adafactor(groups, beta1=beta1), paused, steps=3).state_dict()
    optimizer = Adafactor(groups_of(paused), beta1=beta1)
    optimizers.restore(optimizer, saved)
    for step in range(3, 6):
        give(paused, step)
        optimizer.step()
    for one, other in zip(paused, whole, strict=True):
        if one.dim() < 3:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        elif one.shape[2] > 1:
            assert optimizer.state[one]["exp_avg_sq_row"].shape == one.shape[:1]
            steps = other.detach() - weights()[SHAPES.index(tuple(one.shape))].detach()
            assert (one - other).norm() < 0.5 * steps.norm()


def test_what_a_kernels_means_stand_for_is_kept() -> None:
    """Squares that are a product of out, in and each of the kernel's sides say the same in both forms."""
    factors = [torch.rand(side) + 0.1 for side in (8, 4, 3, 3)]
    squares = torch.einsum("o,i,h,w->oihw", *factors)
    weight = nn.Parameter(torch.zeros(8, 4, 3, 3))
    theirs = transformers_adafactor([{"params": [weight], "lr": 0.0}])
    weight.grad = squares.sqrt()
    theirs.step()
    ours = Adafactor([{"params": [weight], "lr": 1e-9}])
    optimizers.restore(ours, theirs.state_dict())
    ours.param_groups[0]["lr"] = 1e-9
    weight.grad = torch.zeros_like(weight)
    ours.step()  # which forgets 2^-0.8 of what was before
    state, forgotten = ours.state[weight], 1 - 2**-0.8
    torch.testing.assert_close(state["exp_avg_sq_row"], squares.flatten(1).mean(1) * forgotten)
    torch.testing.assert_close(state["exp_avg_sq_col"], squares.flatten(1).mean(0) * forgotten)


def test_adafactor_keeps_a_row_and_a_column_of_a_kernel() -> None:
    for shape, kept in (((64, 128), 64 + 128), ((8, 4, 3, 3), 8 + 36), ((16,), 16), ((), 1)):
        weight = nn.Parameter(torch.ones(shape))
        weight.grad = torch.ones(shape)
        optimizer = Adafactor([weight])
        optimizer.step()
        tensors = [value for value in optimizer.state[weight].values() if torch.is_tensor(value)]
        assert sum(map(Tensor.numel, tensors)) == kept
