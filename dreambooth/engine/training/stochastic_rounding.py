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

from dreambooth.engine.training.factored_moments import portions

_SPREAD = 6_700_417  # keeps the chances of neighbouring steps' weights apart
_ALIGNED = 64  # values: kernels read several at a time where they begin at a round address
_VALUES_AT_ONCE = 2**25  # in full precision for the moment of their step: 128 MiB, and as much for their gradients


@torch.no_grad()
def step(optimizer: torch.optim.Optimizer) -> None:
    """The optimizer's step on weights in bf16, some of them at a time. What it keeps stays in full precision."""
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapping
    numbers = numbered(inner)
    for group in inner.param_groups:
        # Those of one shape together, as some optimizers do them at once (see factored_moments.py).
        weights = sorted((w for w in group["params"] if w.grad is not None), key=lambda weight: tuple(weight.shape))
        for some in portions(weights, _VALUES_AT_ONCE):
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


@torch.no_grad()
def round_at_random(whole: Tensor, each: list[Tensor], numbers: list[int]) -> None:
    """float32 -> a value of bfloat16 beside it, up or down by chance, so that the mean of many is the exact value.

    Takes what `in_full` gave, and changes it in its place. The chance depends on the seed that PyTorch was given last
    and on the tensor's number.
    """
    bits = whole.view(torch.int32)
    chance = torch.empty_like(bits)
    generator = torch.Generator(whole.device)
    for place, number in zip(_places(chance, each), numbers):
        generator.manual_seed((torch.initial_seed() * _SPREAD + number) % 2**63)
        place.random_(0, 1 << 16, generator=generator)
    bits.add_(chance).bitwise_and_(-(1 << 16))


@torch.no_grad()
def in_full(tensors: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Copies in float32, and the one piece of memory in which they lie, so that an operation can be done on all."""
    whole = torch.empty(sum(map(_room, tensors)), dtype=torch.float32, device=tensors[0].device)
    each = _places(whole, tensors)
    torch._foreach_copy_(each, tensors)
    return whole, each


def step_all(optimizer: torch.optim.Optimizer, some: list[nn.Parameter], numbers: dict[nn.Parameter, int]) -> None:
    """The step on these weights at once, all that the optimizer knows of."""
    held = [weight.data for weight in some]
    whole, exact = in_full(held)
    _give(some, exact)
    optimizer.step()
    for weight, place in zip(some, held):
        weight.grad, weight.data = None, place
    round_at_random(whole, exact, [numbers[weight] for weight in some])
    torch._foreach_copy_(held, exact)


def _give(some: list[nn.Parameter], exact: list[Tensor]) -> None:
    """Has the weights lie here, and their gradients in full precision. Keeps hold of none of these."""
    _, gradients = in_full([weight.grad for weight in some])  # type: ignore[misc]
    for weight, values, gradient in zip(some, exact, gradients):
        weight.grad = None
        weight.data = values
        weight.grad = gradient


def _room(tensor: Tensor) -> int:
    return -(-tensor.numel() // _ALIGNED) * _ALIGNED


def _places(whole: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    """Where tensors such as these lie in a piece of memory that has the room of all."""
    pieces = whole.split([_room(tensor) for tensor in tensors])
    return [piece[: tensor.numel()].view(tensor.shape) for piece, tensor in zip(pieces, tensors)]
