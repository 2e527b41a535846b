"""OFT (Qiu et al. 2023, arXiv 2306.07280): a weight's outputs are rotated in blocks, and nothing is added to it.

R = (I + Q)(I - Q)^-1 with Q = B - B^T (the Cayley transform, equation 4 there) and W' = R^T W, block by block over the
outputs. `oft_blocks` files, which AUTOMATIC1111, reForge, SD.Next and ComfyUI read, have it so; peft rotates inputs,
which no WebUI supports. Since W' x + b = R^T (W x + b) + (b - R^T b), the layer rotates the base layer's output.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from dreambooth.core.models.anatomy import oft_side
from dreambooth.engine.layers.lora_layer import ADAPTER


class OftLayer(nn.Module, BaseTunerLayer):
    """A linear layer or convolution whose outputs are rotated; `oft_blocks` is B, (blocks, side, side)."""

    adapter_layer_names = ("oft_blocks",)

    def __init__(self, base: nn.Module, rank: int, alpha: float) -> None:
        """`rank` and `alpha` scale B by alpha / rank."""
        super().__init__()
        self.base_layer = base
        outputs = self.get_base_layer().weight.shape[0]
        side = oft_side(outputs, rank)
        self.oft_blocks = nn.ParameterDict({ADAPTER: torch.zeros(outputs // side, side, side)})
        self.r, self.alpha, self.scaling = {ADAPTER: rank}, {ADAPTER: alpha}, {ADAPTER: alpha / rank}

    def blocks(self) -> Tensor:
        """B with its scale applied, as files have it: their alpha is no scale."""
        return self.oft_blocks[ADAPTER] * self.scaling[ADAPTER]

    def get_delta_weight(self, adapter_name: str = ADAPTER) -> Tensor:
        weight = self.get_base_layer().weight.float()
        return rotate(weight, rotations(self.blocks())) - weight

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer = self.get_base_layer()
        base_output = layer(x, *args, **kwargs)
        if self.disable_adapters:
            return base_output  # type: ignore[no-any-return]
        rotation = rotations(self.blocks())
        outputs = base_output.dim() - 1 if isinstance(layer, nn.Linear) else 1
        result = rotate(base_output, rotation.to(base_output.dtype), outputs)
        if layer.bias is not None:
            bias = layer.bias - rotate(layer.bias, rotation.to(layer.bias.dtype))
            result = result + bias.to(result.dtype).view(-1, *[1] * (base_output.dim() - 1 - outputs))
        return result


def inject(module: nn.Module, pattern: str, size: Callable[[nn.Module], tuple[int, float]]) -> None:
    """Adapts every layer whose path matches, with the rank and alpha that `size` returns for it."""
    for path, layer in [(path, layer) for path, layer in module.named_modules() if re.fullmatch(pattern, path)]:
        parent, _, name = path.rpartition(".")
        setattr(module.get_submodule(parent), name, OftLayer(layer, *size(layer)).to(layer.weight.device))


def rotations(blocks: Tensor) -> Tensor:
    """B (k, n, n) -> R (k, n, n), float32."""
    with torch.autocast(blocks.device.type, enabled=False):
        skew = blocks.float() - blocks.float().transpose(-1, -2)
        identity = torch.eye(skew.shape[-1], device=skew.device)
        # I - Q always has an inverse; a check for it would wait for the device.
        return torch.linalg.solve_ex(identity - skew, identity + skew)[0]


def rotate(values: Tensor, rotation: Tensor, dim: int = 0) -> Tensor:
    """R^T values, block by block along dimension `dim`, which is k * n; `rotation` is R (k, n, n)."""
    blocks = values.movedim(dim, -1).unflatten(-1, rotation.shape[:2])
    return torch.einsum("...kn,knm->...km", blocks, rotation).flatten(-2).movedim(-1, dim)
