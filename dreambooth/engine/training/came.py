"""CAME (Luo et al. 2023, arXiv 2307.02047, algorithm 2): Adafactor whose steps shrink where they disagree."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from dreambooth.engine.training.factored_moments import Means, empty, limit_rms, sides, stackable, stacked

_CLIP = 1.0  # the largest root mean square of a step before it enters the mean
_SPREAD, _DISAGREEMENT = ((f"{name}_rows", f"{name}_columns", f"{name}_whole") for name in ("spread", "disagreement"))


class CAME(torch.optim.Optimizer):
    """Weight decay is decoupled. Keeps a mean for each weight, and of its two spreads a row and a column.

    What has one side, such as a bias, is stepped by its mean alone, as in the authors' own implementation.

    `betas` are those of the mean, of the gradients' spread and of the steps' disagreement; `eps` are added to the two
    spreads.
    """

    def __init__(
        self,
        groups: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        eps: tuple[float, float] = (1e-30, 1e-16),
        weight_decay: float = 0,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for some in stackable(group["params"]):
                self._step(some, group)

    def _step(self, some: list[nn.Parameter], group: dict[str, Any]) -> None:
        (beta1, beta2, beta3), (eps1, eps2), rate = group["betas"], group["eps"], group["lr"]
        is_factored = len(sides(some[0])) == 2
        states = [self.state[weight] for weight in some]
        for state, weight in zip(states, some):
            if not state:
                state["mean"] = torch.zeros_like(weight, dtype=torch.float32)
                state.update(empty(weight, *_SPREAD) | (empty(weight, *_DISAGREEMENT) if is_factored else {}))
        smooth = [state["mean"] for state in states]
        steps, each = stacked([weight.grad for weight in some])  # type: ignore[misc]
        spread = Means(states, *_SPREAD)
        spread.update(steps, beta2, eps1)
        spread.divide(steps)
        limit_rms(steps, each, _CLIP)
        torch._foreach_lerp_(smooth, each, 1 - beta1)
        if is_factored:
            torch._foreach_sub_(each, smooth)
            disagreement = Means(states, *_DISAGREEMENT)
            disagreement.update(steps, beta3, eps2)
            torch._foreach_copy_(each, smooth)
            disagreement.divide(steps)
        else:
            each = smooth
        if group["weight_decay"]:
            torch._foreach_mul_(some, 1 - rate * group["weight_decay"])
        torch._foreach_add_(some, each, alpha=-rate)
