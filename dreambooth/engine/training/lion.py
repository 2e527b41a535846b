"""Lion (arXiv 2302.06675, algorithm 2): only the sign of a mean of the gradients counts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from dreambooth.engine.training.factored_moments import VALUES_AT_ONCE, portions


class Lion(torch.optim.Optimizer):
    """Weight decay is decoupled, as in AdamW. Keeps one mean for each weight."""

    def __init__(
        self, groups: Iterable[Any], lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight]["mean"] = torch.zeros_like(weight)
            for some in portions(weights, VALUES_AT_ONCE):
                self._move(some, group)

    def _move(self, weights: list[nn.Parameter], group: dict[str, Any]) -> None:
        gradients = [weight.grad for weight in weights]
        means = [self.state[weight]["mean"] for weight in weights]
        beta1, beta2 = group["betas"]
        directions = torch._foreach_lerp(means, gradients, 1 - beta1)
        torch._foreach_sign_(directions)
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(weights, directions, alpha=-group["lr"])
        torch._foreach_lerp_(means, gradients, 1 - beta2)
