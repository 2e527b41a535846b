"""Max norm: rescales each LoRA after a step so that the Frobenius norm of its weight delta, scale B A for a plain LoRA,
stays within max_norm (kohya's scale_weight_norms).

Where the norm is larger, the matrices that the delta is the product of are all scaled by the same factor, so that it
becomes max_norm. Layers whose matrices have the same shapes are stacked and rescaled together; norms and factors are
computed on the device, and nobody waits for them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import torch

from dreambooth.engine.layers.lora_layer import ADAPTER, AdapterLayer

VALUES_AT_ONCE = 2**22  # of matrices that are stacked: 16 MiB; a layer with more is alone


class MaxNorm:
    """Limits the norm of the weight deltas of some layers."""

    def __init__(self, layers: Iterable[AdapterLayer], max_norm: float) -> None:
        self.max_norm = max_norm
        alike: dict[Hashable, list[AdapterLayer]] = {}
        for layer in layers:
            alike.setdefault((layer.stack_key, layer.scaling[ADAPTER]), []).append(layer)
        self.stacks: list[list[AdapterLayer]] = []
        for group in alike.values():
            together = max(1, VALUES_AT_ONCE // sum(matrix.numel() for matrix in group[0].matrices()))
            self.stacks += [group[start : start + together] for start in range(0, len(group), together)]

    @torch.no_grad()
    def apply(self) -> None:
        """Rescales the matrices of the layers whose delta is too large, in place."""
        for stack in self.stacks:
            self._apply(stack)

    def _apply(self, layers: list[AdapterLayer]) -> None:
        by_factor = list(zip(*(layer.matrices() for layer in layers)))  # such as all A, then all B
        stacked = [torch.stack(matrices) for matrices in by_factor]
        # By rounding, the squared norm of a delta of nearly zero may come out negative.
        norms = layers[0].squared_norms(stacked).clamp_(min=0).sqrt_().mul_(layers[0].scaling[ADAPTER])
        factors = (self.max_norm / norms.clamp_(min=self.max_norm)).pow_(1 / len(by_factor))
        for stack in stacked:
            stack.mul_(factors.view(-1, *[1] * (stack.dim() - 1)))
        torch._foreach_copy_([one for side in by_factor for one in side], [one for stack in stacked for one in stack])
