"""Training weights that are held in bf16: the change is worked out in full precision and rounded at random.

bf16 keeps 8 bits of a weight, so most changes of a fine-tuning are smaller than half of its last bit and would be
rounded away. Rounded up with the probability of what is cut off, they are right on the average. The chance is each
weight's own at each step, so that it does not matter in which order they change.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_SPREAD = 6_700_417  # keeps the chances of neighbouring steps' weights apart
_VALUES_AT_ONCE = 2**25  # in full precision for the moment of their step: 128 MiB, and as much for their gradients


@torch.no_grad()
def step(optimizer: torch.optim.Optimizer) -> None:
    """The optimizer's step on weights in bf16, some of them at a time. What it keeps stays in full precision."""
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapping
    numbers = numbered(inner)
    for group in inner.param_groups:
        for some in _portions([weight for weight in group["params"] if weight.grad is not None]):
            with only(inner, group, some):
                step_all(inner, some, numbers)


def numbered(optimizer: Any) -> dict[nn.Parameter, int]:
    """The place of each weight among all that an optimizer changes."""
    return {weight: n for n, weight in enumerate(one for group in optimizer.param_groups for one in group["params"])}


@contextlib.contextmanager
def only(optimizer: Any, group: dict[str, Any], some: list[nn.Parameter]) -> Iterator[None]:
    """Within it an optimizer knows of some weights of one of its groups alone."""
    groups, weights = optimizer.param_groups, group["params"]
    optimizer.param_groups, group["params"] = [group], some
    try:
        yield
    finally:
        optimizer.param_groups, group["params"] = groups, weights


def rounded(exact: Tensor, number: int) -> Tensor:
    """float32 -> bfloat16, up or down by chance, so that the mean of many is the exact value.

    The chance depends on the seed that PyTorch was given last and on the weight's number.
    """
    bits = exact.contiguous().view(torch.int32)
    generator = torch.Generator(exact.device)
    generator.manual_seed((torch.initial_seed() * _SPREAD + number) % 2**63)
    chance = torch.randint(1 << 16, bits.shape, generator=generator, device=bits.device, dtype=bits.dtype)
    return (bits + chance).bitwise_and_(-(1 << 16)).view(torch.float32).bfloat16()


def step_all(optimizer: torch.optim.Optimizer, some: list[nn.Parameter], numbers: dict[nn.Parameter, int]) -> None:
    """The step on these weights at once, all that the optimizer knows of."""
    held = [weight.data for weight in some]
    for weight in some:
        gradient, weight.grad = weight.grad, None
        weight.data = weight.data.float()
        weight.grad = gradient.float()
    optimizer.step()
    for weight, place in zip(some, held):
        exact, weight.grad = weight.data, None
        weight.data = place.copy_(rounded(exact, numbers[weight]))


def _portions(weights: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    some: list[nn.Parameter] = []
    values = 0
    for weight in weights:
        if some and values + weight.numel() > _VALUES_AT_ONCE:
            yield some
            some, values = [], 0
        some.append(weight)
        values += weight.numel()
    if some:
        yield some
