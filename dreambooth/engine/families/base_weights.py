"""The weights of a UNet that rests under a LoRA, smaller or elsewhere between two uses.

In `int8` each row of a large weight lies in 8 bits with its own scale (round to nearest, of the row's greatest value,
as in Dettmers et al. 2022, arXiv 2208.07339, section 2.1, without its outliers); `streamed` ones lie in the computer's
memory. The blocks of the UNet, one transformer block or one residual block each, get them back in the precision of the
computation while they work. With gradient checkpointing nothing of a block outlives that, so that the device holds the
weights of one block at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

LEAST_VALUES = 4096  # of a weight that is worth it
_BLOCKS = (BasicTransformerBlock, ResnetBlock2D)


class Resting(Protocol):
    """A weight between two uses."""

    def woken(self, device: torch.device) -> Tensor: ...


class Streamed:
    """It lies in the computer's memory, where a GPU can fetch it without the processor."""

    def __init__(self, weight: Tensor, device: torch.device) -> None:
        self.kept = weight.pin_memory() if device.type == "cuda" else weight

    def woken(self, device: torch.device) -> Tensor:
        return self.kept.to(device, non_blocking=True, copy=True)


class Int8:
    """It lies in 8 bits in buffers of its layer, which move with it."""

    def __init__(self, weight: Tensor, device: torch.device, layer: nn.Module) -> None:
        self.layer, self.dtype, self.shape = layer, weight.dtype, weight.shape
        rows = weight.to(device).float().flatten(1)
        scale = rows.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
        layer.register_buffer("resting_values", (rows / scale).round().to(torch.int8), persistent=False)
        layer.register_buffer("resting_scale", scale, persistent=False)

    def woken(self, device: torch.device) -> Tensor:
        values, scale = self.layer.resting_values, self.layer.resting_scale
        return (values.float() * scale).to(self.dtype).reshape(self.shape)


def lay(unet: nn.Module, kind: str, device: torch.device) -> None:
    """Has the large weights of each block rest in one of these ways. Nothing of the UNet may be trained itself."""
    for block in unet.modules():
        if kind != "whole" and isinstance(block, _BLOCKS):
            _lay_block(block, kind, device)


def _lay_block(block: nn.Module, kind: str, device: torch.device) -> None:
    resting: list[tuple[nn.Module, Resting]] = []
    for layer, weight in large_weights(block):
        made: Resting = Streamed(weight.data, device) if kind == "streamed" else Int8(weight.data, device, layer)
        resting.append((layer, made))
    _fall_asleep(resting)

    def wake(module: nn.Module, inputs: Any) -> None:
        place = next(tensor.device for tensor in inputs if isinstance(tensor, Tensor))
        for layer, made in resting:
            layer._parameters["weight"] = nn.Parameter(made.woken(place), requires_grad=False)

    block.register_forward_pre_hook(wake)
    block.register_forward_hook(lambda *_: _fall_asleep(resting), always_call=True)


def _fall_asleep(resting: list[tuple[nn.Module, Resting]]) -> None:
    for layer, _ in resting:
        weight = layer._parameters["weight"]
        if weight is not None and weight.numel():
            layer._parameters["weight"] = nn.Parameter(weight.new_empty(0), requires_grad=False)


def large_weights(block: nn.Module) -> Iterator[tuple[nn.Module, nn.Parameter]]:
    for layer in block.modules():
        weight = layer._parameters.get("weight")
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and weight is not None and weight.numel() >= LEAST_VALUES:
            yield layer, weight
