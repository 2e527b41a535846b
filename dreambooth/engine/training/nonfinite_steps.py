"""Leaving a step out on the device itself, so that nobody waits for the device to know whether the step is sound."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_WHOLE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@contextlib.contextmanager
def skipped_if(optimizer: Any, bad: Tensor) -> Iterator[None]:
    """Within it a step of the optimizer is left out where `bad` (a truth on the device) says so.

    PyTorch's fused optimizers know this from mixed precision (`found_inf`) and leave everything as it is. The others
    take a step of no gradient: what they remember fades a little, and nothing that is not finite reaches them. So do
    the fused ones on an Apple GPU, which did not hear of `found_inf` until 2026 (pytorch/pytorch issue 186360).
    """
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapping
    if getattr(inner, "_step_supports_amp_scaling", False) and bad.device.type != "mps":
        inner.grad_scale, inner.found_inf = None, bad.float()
        try:
            yield
        finally:
            del inner.grad_scale, inner.found_inf
        return
    _clear(inner, bad)
    yield


def _clear(optimizer: Any, bad: Tensor) -> None:
    """Gradients of zero where `bad` says so, in as few operations as the device allows.

    Times zero a NaN stays one, but not its bits: taken for a whole number, times 1 they are what they were, and times 0
    they are those of zero.
    """
    bits: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if weight.grad is not None:
                held = weight.grad.view(_WHOLE[weight.grad.element_size()])
                bits.setdefault((held.device, held.dtype), []).append(held)
    for (device, dtype), held in bits.items():
        torch._foreach_mul_(held, (~bad).to(device, dtype))


@torch.no_grad()
def all_finite(tensors: list[Tensor]) -> bool:
    """Whether every value is a number: the largest of each tensor is one. Waits for the device."""
    alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            alike.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    largest = (torch.stack(torch._foreach_norm(some, math.inf)) for some in alike.values())
    return all(bool(torch.isfinite(of_each).all()) for of_each in largest)
