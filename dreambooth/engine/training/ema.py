"""An exponential moving average of the trained weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


class Ema:
    """The average starts short and grows: after n updates the decay is min(decay, (1 + n) / (10 + n)),
    so that a run of a few hundred steps is not averaged with where it began."""

    def __init__(self, weights: dict[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.average = {name: weight.detach().clone() for name, weight in weights.items()}

    @torch.no_grad()
    def update(self, weights: dict[str, Tensor]) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.average.values()), [weights[name].detach() for name in self.average], 1 - decay)

    @contextlib.contextmanager
    def applied(self, weights: dict[str, Tensor]) -> Iterator[None]:
        """The average stands in the model's place, for a preview or a save."""
        kept = {name: weight.detach().clone() for name, weight in weights.items()}
        _copy(self.average, weights)
        try:
            yield
        finally:
            _copy(kept, weights)


@torch.no_grad()
def _copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    for name, tensor in source.items():
        target[name].copy_(tensor)
