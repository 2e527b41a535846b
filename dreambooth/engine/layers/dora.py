"""DoRA (Liu et al. 2024, arXiv 2402.09353): a LoRA with a separately trained magnitude of each column of the weight.

W' = m (W + dW) / |W + dW|, where the norm is taken for each input over all outputs, as the WebUIs' readers take it (the
paper's columns; peft takes rows). Since m / norm scales inputs, W' x = (W + dW) (m / norm x): the LoRA layer is given
scaled inputs. As in the paper (section 4.3), the norm is treated as a constant in the backward pass.

Of W + s B A, with columns w_j and a_j, the squared norms are |w_j|^2 + 2 s a_j.(B^T w_j) + s^2 a_j.(B^T B a_j). The
first term is computed once, and nothing else is as large as the weight.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dreambooth.engine.layers.lora_layer import ADAPTER

_NAME = "dora"
_MIN_NORM = 1e-12
_ROUNDING = 1e-6  # share of a column's square: the rounding error where the delta nearly cancels the column


class Magnitude(nn.Module):
    """The trained magnitude of each column of a LoRA layer's weight, (in,)."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        norms = column_norms(layer.get_base_layer().weight)
        self.weight = nn.Parameter(norms)
        self.register_buffer("base_squared_norms", norms.square(), persistent=False)

    def scale(self, layer: Any) -> Tensor:
        """The factors m / norm of the inputs of `layer`, (in,)."""
        with torch.no_grad(), torch.autocast(self.weight.device.type, enabled=False):
            down, up = (side[ADAPTER].weight.float().flatten(1) for side in (layer.lora_A, layer.lora_B))
            weight = layer.get_base_layer().weight.float().flatten(1)
            added = added_squared_norms(weight, down, up * layer.scaling[ADAPTER]).view(len(self.weight), -1).sum(1)
            norms = torch.maximum(self.base_squared_norms + added, self.base_squared_norms * _ROUNDING).sqrt()
        return self.weight / norms


def added_squared_norms(weight: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """What adding up @ down, (out, r) @ (r, in), to a weight (out, in) adds to its squared column norms, (in,)."""
    product = torch.addmm(up.T @ weight, up.T @ up, down, beta=2)
    return (product * down).sum(0)


def attach(layer: Any) -> Magnitude:
    """Makes a LoRA layer of peft's a DoRA layer, whose outputs are at first the same. Returns its magnitude."""
    magnitude = Magnitude(layer)
    layer.add_module(_NAME, magnitude)

    def scale_inputs(layer: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if layer.disable_adapters:
            return inputs
        scale, x = magnitude.scale(layer), inputs[0]
        scale = scale.view(-1, 1, 1) if layer.get_base_layer().weight.dim() == 4 else scale
        return x * scale.to(x.dtype), *inputs[1:]

    layer.register_forward_pre_hook(scale_inputs)
    return magnitude


def magnitude_of(layer: nn.Module) -> Magnitude | None:
    """The magnitude of a DoRA layer; None for other layers."""
    return getattr(layer, _NAME, None)


def column_norms(weight: Tensor, delta: Tensor | None = None) -> Tensor:
    """The column norms of a weight (out, in, ...), or of the sum of it and `delta`: (in,), float32."""
    whole = weight.detach().float() if delta is None else weight.float() + delta
    return whole.transpose(0, 1).flatten(1).norm(dim=1).clamp(min=_MIN_NORM)
