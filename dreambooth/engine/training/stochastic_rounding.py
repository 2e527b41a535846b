"""Stochastic rounding for weights that are stored in bf16: the update is computed in float32 and rounded at random.

bf16 keeps 8 bits of a weight, so most updates of a fine-tuning are smaller than half of its last bit and would be
rounded away. Rounded up with the probability of the fraction that is cut off, they are right on average. The random
bits depend on the weight and the step alone, not on the order in which the weights are updated.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dreambooth.engine.training import optimizers
from dreambooth.engine.training.factored_moments import portions

_SEED_STRIDE = 6_700_417  # keeps the seeds of the weights of neighbouring steps apart
_ALIGNMENT = 64  # values: kernels load several at a time where they start at an aligned address
_VALUES_AT_ONCE = 2**25  # in float32 during their step: 128 MiB, and as much for their gradients


@torch.no_grad()
def step(optimizer: torch.optim.Optimizer) -> None:
    """The optimizer's step on weights in bf16, a portion of them at a time. Its states stay in float32."""
    inner = optimizers.unwrapped(optimizer)
    at = positions(inner)
    for group in inner.param_groups:
        # Sorted by shape, as some optimizers update weights of one shape together (see factored_moments.py).
        weights = sorted((w for w in group["params"] if w.grad is not None), key=lambda weight: tuple(weight.shape))
        for portion in portions(weights, _VALUES_AT_ONCE):
            with restricted_to(inner, group, portion):
                step_together(inner, portion, at)


def positions(optimizer: Any) -> dict[nn.Parameter, int]:
    """The position of each weight among all weights of an optimizer."""
    return {weight: n for n, weight in enumerate(one for group in optimizer.param_groups for one in group["params"])}


@contextlib.contextmanager
def restricted_to(optimizer: Any, group: dict[str, Any], weights: list[nn.Parameter]) -> Iterator[None]:
    """Leaves an optimizer only these weights of one of its groups until the block ends."""
    all_groups, all_weights = optimizer.param_groups, group["params"]
    optimizer.param_groups, group["params"] = [group], weights
    try:
        yield
    finally:
        optimizer.param_groups, group["params"] = all_groups, all_weights


@torch.no_grad()
def round_at_random(buffer: Tensor, views: list[Tensor], at: list[int]) -> None:
    """Rounds float32 values in place to one of the two neighbouring bf16 values, so that the expectation is exact.

    `buffer` and its `views` are what `in_float32` returned. The random bits follow from the seed that PyTorch was given
    last and from the position of each tensor.
    """
    bits = buffer.view(torch.int32)
    noise = torch.empty_like(bits)
    generator = torch.Generator(buffer.device)
    for view, position in zip(_views(noise, views), at):
        generator.manual_seed((torch.initial_seed() * _SEED_STRIDE + position) % 2**63)
        view.random_(0, 1 << 16, generator=generator)
    bits.add_(noise).bitwise_and_(-(1 << 16))


@torch.no_grad()
def in_float32(tensors: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Copies of tensors in one flat buffer, on which one operation works on all of them, and as views of it."""
    buffer = torch.empty(sum(map(_aligned_size, tensors)), dtype=torch.float32, device=tensors[0].device)
    views = _views(buffer, tensors)
    torch._foreach_copy_(views, tensors)
    return buffer, views


def step_together(optimizer: torch.optim.Optimizer, weights: list[nn.Parameter], at: dict[nn.Parameter, int]) -> None:
    """The step on these weights together, to which the optimizer must be restricted; `at` are their positions."""
    stored = [weight.data for weight in weights]
    buffer, exact = in_float32(stored)
    _set_data_and_gradients(weights, exact)
    optimizer.step()
    for weight, data in zip(weights, stored):
        weight.grad, weight.data = None, data
    round_at_random(buffer, exact, [at[weight] for weight in weights])
    torch._foreach_copy_(stored, exact)


def _set_data_and_gradients(weights: list[nn.Parameter], data: list[Tensor]) -> None:
    """Gives weights these values, and their gradients in float32. A function, so that it keeps no reference to them."""
    _, gradients = in_float32([weight.grad for weight in weights])  # type: ignore[misc]
    for weight, values, gradient in zip(weights, data, gradients):
        weight.grad = None
        weight.data = values
        weight.grad = gradient


def _aligned_size(tensor: Tensor) -> int:
    return -(-tensor.numel() // _ALIGNMENT) * _ALIGNMENT


def _views(buffer: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    """Views of a flat buffer with the shapes of these tensors, each at an aligned offset."""
    chunks = buffer.split([_aligned_size(tensor) for tensor in tensors])
    return [chunk[: tensor.numel()].view(tensor.shape) for chunk, tensor in zip(chunks, tensors)]
