"""Gradient checkpointing of some of a UNet's blocks: of those whose activations are cheapest to work out again.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost" (arXiv 1604.06174). A transformer block holds five to
nine times as much as a residual block for each operation that doing it again takes, and a narrow one more than a wide
one. So the transformer blocks come first, and of each kind the narrowest.
"""

from __future__ import annotations

from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.checkpoint import checkpoint

_OUTSIDE = "mid_block.resnets.0"  # diffusers never asks for its checkpoint
# What a block holds for each of its pixels, in bytes, of its inputs' and outputs' channels; counted on SD 1 and SDXL
# with a LoRA in half precision, where only how they compare matters.
_TRANSFORMER_BYTES = 64
_RESIDUAL_BYTES = (4, 6)


def use(unet: UNet2DConditionModel, share: float) -> None:
    """Has blocks worked out again in the backward pass that together hold this share of what all of them hold.

    Random numbers are put back for that only where a block draws any: to read and to set them takes the CPU as long as
    some operations, for each block of each step.
    """
    chosen = None if share >= 1 else set(cheapest(unet, share))
    known: dict[nn.Module, bool] = {}

    def run(block: nn.Module, *inputs: Any) -> Any:
        if chosen is not None and block not in chosen:
            return block(*inputs)
        if block not in known:
            known[block] = draws(block)
        return checkpoint(block.__call__, *inputs, use_reentrant=False, preserve_rng_state=known[block])

    unet.enable_gradient_checkpointing(run)


def draws(block: nn.Module) -> bool:
    """Whether it draws random numbers in training."""
    return any(isinstance(part, _DropoutNd) and part.p > 0 for part in block.modules())


def cheapest(unet: nn.Module, share: float) -> list[nn.Module]:
    """The blocks that are worked out again, the cheapest first, until they hold the share."""
    depth = len(unet.get_submodule("down_blocks")._modules)
    found = []
    for name, block in unet.named_modules():
        if isinstance(block, (BasicTransformerBlock, ResnetBlock2D)) and name != _OUTSIDE:
            is_residual, width, held = _held(block)
            found.append((is_residual, width, held * 0.25 ** _level(name, depth), block))
    found.sort(key=lambda one: one[:2])
    room, chosen = share * sum(held for *_, held, _ in found), list[nn.Module]()
    for *_, held, block in found:
        if room <= 0:
            break
        chosen.append(block)
        room -= held
    return chosen


def _held(block: nn.Module) -> tuple[bool, int, int]:
    """Whether it is a residual block, its width, and the bytes that it holds for each of its pixels."""
    if isinstance(block, ResnetBlock2D):
        inputs, outputs = _RESIDUAL_BYTES
        return True, block.out_channels, inputs * block.in_channels + outputs * block.out_channels
    width = int(block.norm1.normalized_shape[0])  # type: ignore[union-attr, index, arg-type]
    return False, width, _TRANSFORMER_BYTES * width


def _level(name: str, depth: int) -> int:
    """How often the picture has been halved where a block works."""
    where, number = name.split(".")[:2]
    if where == "mid_block":
        return depth - 1
    return int(number) if where == "down_blocks" else depth - 1 - int(number)
