"""An exponential moving average of the trained weights."""

from __future__ import annotations

import torch
from torch import Tensor

IN_STATE = "ema."  # before the names of averages in a saved state


class Ema:
    """The average starts short and grows: after n updates the decay is min(decay, (1 + n) / (10 + n)),
    so that a run of a few hundred steps is not averaged with where it began. It is kept in full precision."""

    def __init__(self, weights: dict[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.average = {name: weight.detach().to(torch.float32, copy=True) for name, weight in weights.items()}

    @torch.no_grad()
    def update(self, weights: dict[str, Tensor]) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        newest = [weights[name].detach() for name in self.average]
        if all(weight.dtype == torch.float32 for weight in newest):
            torch._foreach_lerp_(list(self.average.values()), newest, 1 - decay)
            return
        for average, weight in zip(self.average.values(), newest):  # one copy in full precision at a time, not all
            average.lerp_(weight.float(), 1 - decay)
