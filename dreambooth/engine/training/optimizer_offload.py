"""Trained weights that lie in the computer's memory, and what the optimizer keeps of them: on the device for a step.

Both come from where a GPU can fetch them without the CPU and go back there, on one stream of work, so that
nobody waits in between; `wait` waits for the last of them, before the CPU reads any.
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
    """Within it these weights and their states are on the device; afterwards what has changed is back."""
    lying = {weight: weight.data for weight in weights}
    kept = {weight: dict(optimizer.state.get(weight, {})) for weight in weights}
    for weight in weights:
        weight.data = hardware.brought(lying[weight], device, copy=True)
        for name, value in kept[weight].items():
            if isinstance(value, Tensor):
                optimizer.state[weight][name] = hardware.brought(value, device, copy=True)
    try:
        yield
    finally:
        for weight in weights:
            weight.grad = None
            weight.data = _put_back(lying[weight], weight.data)
            for name, value in optimizer.state.get(weight, {}).items():
                if isinstance(value, Tensor):
                    optimizer.state[weight][name] = _put_back(kept[weight].get(name), value)


def wait(device: torch.device) -> None:
    """Waits until what was put back is there."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def _put_back(place: Tensor | None, value: Tensor) -> Tensor:
    """The value in its place in the computer's memory, or in a new one where it had none that will do."""
    pins = value.is_cuda and hardware.pins()
    if place is None or place.shape != value.shape or place.dtype != value.dtype or place.is_pinned() < pins:
        place = hardware.in_reach(lambda pinned: torch.empty_like(value, device="cpu", pin_memory=pinned and pins))
    return place.copy_(value, non_blocking=value.is_cuda)
