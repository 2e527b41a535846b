"""Skipping steps whose loss or gradients are not finite, decided on the device so that nobody waits for it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dreambooth.engine.training import optimizers

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of a value


@contextlib.contextmanager
def skipped_if(optimizer: Any, skip: Tensor) -> Iterator[None]:
    """Keeps the gradients from the optimizer's step within the block where `skip`, a boolean on the device, is true.

    PyTorch's fused optimizers know this from mixed precision (`found_inf`) and leave everything as it is. The others
    take a step with gradients of zero: their moments decay, and the weights move by what is left of the moments. So do
    the fused ones on an Apple GPU, which ignored `found_inf` until 2026 (pytorch/pytorch issue 186360).
    """
    inner = optimizers.unwrapped(optimizer)
    if getattr(inner, "_step_supports_amp_scaling", False) and skip.device.type != "mps":
        inner.grad_scale, inner.found_inf = None, skip.float()
        try:
            yield
        finally:
            del inner.grad_scale, inner.found_inf
        return
    _zero_gradients_if(inner, skip)
    yield


def _zero_gradients_if(optimizer: Any, skip: Tensor) -> None:
    """Sets all gradients to zero where `skip` is true, in as few operations as possible.

    A NaN times zero is a NaN, but its bits, read as an integer, times 0 are those of zero, and times 1 what they were.
    """
    by_kind: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if weight.grad is not None:
                bits = weight.grad.view(_INTEGERS[weight.grad.element_size()])
                by_kind.setdefault((bits.device, bits.dtype), []).append(bits)
    for (device, dtype), all_bits in by_kind.items():
        torch._foreach_mul_(all_bits, (~skip).to(device, dtype))


@torch.no_grad()
def all_finite(tensors: list[Tensor]) -> bool:
    """Whether all values of the floating-point tensors are finite. Waits for the device."""
    by_kind: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            by_kind.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    maxima = (torch.stack(torch._foreach_norm(some, math.inf)) for some in by_kind.values())
    return all(bool(torch.isfinite(of_each).all()) for of_each in maxima)
