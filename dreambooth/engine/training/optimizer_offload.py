"""Optimizer offload: trained weights and their optimizer states are stored in the computer's memory, and on the device
for a step only.

They are copied from and to pinned memory, which a GPU reaches without the CPU, on one stream, so that nobody waits in
between; `wait` waits for the last copy, before the CPU reads any of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dreambooth.engine import hardware


@contextlib.contextmanager
def on_device(weights: list[nn.Parameter], optimizer: Any, device: torch.device) -> Iterator[None]:
    """Has these weights and their optimizer states on the device until the block ends, then copies them back."""
    offloaded = {weight: weight.data for weight in weights}
    states = {weight: dict(optimizer.state.get(weight, {})) for weight in weights}
    for weight in weights:
        weight.data = hardware.brought(offloaded[weight], device, copy=True)
        for name, value in states[weight].items():
            if isinstance(value, Tensor):
                optimizer.state[weight][name] = hardware.brought(value, device, copy=True)
    try:
        yield
    finally:
        for weight in weights:
            weight.grad = None
            weight.data = _copy_back(offloaded[weight], weight.data)
            for name, value in optimizer.state.get(weight, {}).items():
                if isinstance(value, Tensor):
                    optimizer.state[weight][name] = _copy_back(states[weight].get(name), value)


def wait(device: torch.device) -> None:
    """Waits until all copies have arrived in the computer's memory."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def _copy_back(place: Tensor | None, value: Tensor) -> Tensor:
    """Copies a value to its former place in the computer's memory, or to a new one where that does not fit."""
    pins = value.is_cuda and hardware.pins()
    if place is None or place.shape != value.shape or place.dtype != value.dtype or place.is_pinned() < pins:
        place = hardware.in_reach(lambda pinned: torch.empty_like(value, device="cpu", pin_memory=pinned and pins))
    return place.copy_(value, non_blocking=value.is_cuda)
