"""Max norm: what a LoRA adds to a weight grows no longer than so much.

Where it has grown longer (by its Frobenius norm, with the LoRA's scale), the matrices that it is the product of are
each made shorter by the same share, so that it is just as long. Layers of one form are stacked and done together; how
long they are is known on the device alone, and nobody waits for it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import torch

from dreambooth.engine.layers.lora_layer import ADAPTER, AdapterLayer

VALUES_AT_ONCE = 2**22  # of matrices that are stacked: 16 MiB; a layer with more is alone


class MaxNorm:
    """Keeps what each of some layers adds to its weight at most this long."""

    def __init__(self, layers: Iterable[AdapterLayer], most: float) -> None:
        self.most = most
        alike: dict[Hashable, list[AdapterLayer]] = {}
        for layer in layers:
            alike.setdefault((layer.form, layer.scaling[ADAPTER]), []).append(layer)
        self.stacks: list[list[AdapterLayer]] = []
        for some in alike.values():
            together = max(1, VALUES_AT_ONCE // sum(matrix.numel() for matrix in some[0].matrices()))
            self.stacks += [some[start : start + together] for start in range(0, len(some), together)]

    @torch.no_grad()
    def apply(self) -> None:
        for some in self.stacks:
            self._apply(some)

    def _apply(self, some: list[AdapterLayer]) -> None:
        sides = list(zip(*(layer.matrices() for layer in some)))
        stacked = [torch.stack(side) for side in sides]
        # By rounding the square of next to nothing may come out below it.
        norms = some[0].squares(stacked).clamp_(min=0).sqrt_().mul_(some[0].scaling[ADAPTER])
        shares = (self.most / norms.clamp_(min=self.most)).pow_(1 / len(sides))
        for stack in stacked:
            stack.mul_(shares.view(-1, *[1] * (stack.dim() - 1)))
        torch._foreach_copy_([one for side in sides for one in side], [one for stack in stacked for one in stack])
