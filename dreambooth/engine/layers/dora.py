"""DoRA (Liu et al. 2024, arXiv 2402.09353): a LoRA that learns apart how long each column of a weight is.

W' = m (W + dW) / |W + dW|, where the norm is taken for each input over all outputs, as the WebUIs' readers take it (the
paper's columns; peft takes rows). Since m / norm scales inputs, W' x = (W + dW) (m / norm x): the LoRA layer is given
scaled inputs. As the paper has it (section 4.3), the norm is a constant to the gradient.

Of W + s B A, with columns w_j and a_j, the squared norms are |w_j|^2 + 2 s a_j.(B^T w_j) + s^2 a_j.(B^T B a_j). The
first is worked out once, and nothing else is as large as the weight.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dreambooth.engine.layers.lora_layer import ADAPTER

_NAME = "dora"
_LEAST_NORM = 1e-12
_ROUNDING = 1e-6  # of a column's square: what is left of one that the change all but takes away is not known better


class Magnitude(nn.Module):
    """The learned length of each column of a LoRA layer's weight, (in,)."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        norms = column_norms(layer.get_base_layer().weight)
        self.weight = nn.Parameter(norms)
        self.register_buffer("plain_squares", norms.square(), persistent=False)

    def scale(self, layer: Any) -> Tensor:
        """What each input is multiplied by, (in,)."""
        with torch.no_grad(), torch.autocast(self.weight.device.type, enabled=False):
            down, up = (side[ADAPTER].weight.float().flatten(1) for side in (layer.lora_A, layer.lora_B))
            weight = layer.get_base_layer().weight.float().flatten(1)
            more = squares_added(weight, down, up * layer.scaling[ADAPTER]).view(len(self.weight), -1).sum(1)
            norms = torch.maximum(self.plain_squares + more, self.plain_squares * _ROUNDING).sqrt()
        return self.weight / norms


def squares_added(weight: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """What up @ down, (out, r) @ (r, in), adds to the squared norms of a weight's columns, (out, in) -> (in,)."""
    along = torch.addmm(up.T @ weight, up.T @ up, down, beta=2)
    return (along * down).sum(0)


def attach(layer: Any) -> Magnitude:
    """Makes a DoRA layer of peft's LoRA layer, which computes what it did before."""
    magnitude = Magnitude(layer)
    layer.add_module(_NAME, magnitude)

    def scaled(layer: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if layer.disable_adapters:
            return inputs
        scale, x = magnitude.scale(layer), inputs[0]
        scale = scale.view(-1, 1, 1) if layer.get_base_layer().weight.dim() == 4 else scale
        return x * scale.to(x.dtype), *inputs[1:]

    layer.register_forward_pre_hook(scaled)
    return magnitude


def magnitudes_of(layer: nn.Module) -> Magnitude | None:
    """The magnitude of a DoRA layer; None where it is a plain LoRA layer."""
    return getattr(layer, _NAME, None)


def column_norms(weight: Tensor, change: Tensor | None = None) -> Tensor:
    """The norm of a weight (out, in, ...), or of it and its change, for each input: (in,), float32."""
    whole = weight.detach().float() if change is None else weight.float() + change
    return whole.transpose(0, 1).flatten(1).norm(dim=1).clamp(min=_LEAST_NORM)
