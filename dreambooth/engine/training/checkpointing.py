"""Gradient checkpointing of some of a UNet's blocks: those whose activations are cheapest to recompute.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost" (arXiv 1604.06174). Per operation that has to be
recomputed, a transformer block stores five to nine times as much as a residual block, and a narrow block more than a
wide one. So transformer blocks are checkpointed first, and of each kind the narrowest.
"""

from __future__ import annotations

from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.checkpoint import checkpoint

_OUTSIDE = "mid_block.resnets.0"  # diffusers never checkpoints it
# Bytes of activations per pixel and channel, of a transformer block's width, and of a residual block's input and output
# channels; measured on SD 1 and SDXL with a LoRA in half precision. Only their ratios matter.
_TRANSFORMER_BYTES = 64
_RESIDUAL_BYTES = (4, 6)


def enable(unet: UNet2DConditionModel, share: float) -> None:
    """Checkpoints the cheapest blocks that together store this share, 0 to 1, of the activations of all blocks.

    The random state is preserved only for blocks that draw random numbers: to read and to restore it takes the CPU as
    long as some operations, for each block of each step.
    """
    chosen = None if share >= 1 else set(cheapest_blocks(unet, share))
    is_random: dict[nn.Module, bool] = {}

    def run(block: nn.Module, *inputs: Any) -> Any:
        if chosen is not None and block not in chosen:
            return block(*inputs)
        if block not in is_random:
            is_random[block] = draws_random_numbers(block)
        return checkpoint(block.__call__, *inputs, use_reentrant=False, preserve_rng_state=is_random[block])

    unet.enable_gradient_checkpointing(run)


def draws_random_numbers(block: nn.Module) -> bool:
    """Whether a block draws random numbers in training."""
    return any(isinstance(part, _DropoutNd) and part.p > 0 for part in block.modules())


def cheapest_blocks(unet: nn.Module, share: float) -> list[nn.Module]:
    """The blocks to checkpoint, the cheapest first, until they store the share."""
    depth = len(unet.get_submodule("down_blocks")._modules)
    found = []
    for name, block in unet.named_modules():
        if isinstance(block, (BasicTransformerBlock, ResnetBlock2D)) and name != _OUTSIDE:
            is_residual, width, bytes_per_pixel = _costs(block)
            found.append((is_residual, width, bytes_per_pixel * 0.25 ** _level(name, depth), block))
    found.sort(key=lambda one: one[:2])
    remaining, chosen = share * sum(stored for *_, stored, _ in found), list[nn.Module]()
    for *_, stored, block in found:
        if remaining <= 0:
            break
        chosen.append(block)
        remaining -= stored
    return chosen


def _costs(block: nn.Module) -> tuple[bool, int, int]:
    """Whether it is a residual block, its width in channels, and the bytes that it stores per pixel."""
    if isinstance(block, ResnetBlock2D):
        inputs, outputs = _RESIDUAL_BYTES
        return True, block.out_channels, inputs * block.in_channels + outputs * block.out_channels
    width = int(block.norm1.normalized_shape[0])  # type: ignore[union-attr, index, arg-type]
    return False, width, _TRANSFORMER_BYTES * width


def _level(name: str, depth: int) -> int:
    """How often the resolution has been halved at a block."""
    where, number = name.split(".")[:2]
    if where == "mid_block":
        return depth - 1
    return int(number) if where == "down_blocks" else depth - 1 - int(number)
