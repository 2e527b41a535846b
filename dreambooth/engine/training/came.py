"""CAME (Luo et al. 2023, arXiv 2307.02047, algorithm 2): Adafactor whose steps shrink where they disagree."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_CLIP = 1.0  # the largest root mean square of a step before it enters the mean


class CAME(torch.optim.Optimizer):
    """Weight decay is decoupled. Keeps a mean for each weight, and of its two spreads a row and a column.

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
            for weight in group["params"]:
                if weight.grad is not None:
                    self._step(weight, group)

    def _step(self, weight: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2, beta3), (eps1, eps2) = self.state[weight], group["betas"], group["eps"]
        gradient = weight.grad.float()  # type: ignore[union-attr]
        if not state:
            state["mean"] = torch.zeros_like(gradient)
            for name in ("spread", "disagreement"):
                state.update({f"{name}_{side}": values for side, values in _empty(gradient).items()})
        step = gradient * _follow(state, "spread", gradient.square() + eps1, beta2)
        step /= (step.square().mean().sqrt() / _CLIP).clamp(min=1.0)
        state["mean"].lerp_(step, 1 - beta1)
        step = state["mean"] * _follow(state, "disagreement", (step - state["mean"]).square() + eps2, beta3)
        weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(step, alpha=-group["lr"])


def _matrix(values: Tensor) -> Tensor | None:
    """A weight as (out, everything else); None where it has one side only."""
    return values.flatten(1) if values.dim() > 1 else None


def _empty(values: Tensor) -> dict[str, Tensor]:
    matrix = _matrix(values)
    if matrix is None:
        return {"whole": torch.zeros_like(values)}
    return {"rows": torch.zeros_like(matrix[:, 0]), "columns": torch.zeros_like(matrix[0])}


def _follow(state: dict[str, Tensor], name: str, values: Tensor, beta: float) -> Tensor:
    """Moves a running mean towards the values; one over its square root, in their shape."""
    matrix = _matrix(values)
    if matrix is None:
        return state[f"{name}_whole"].lerp_(values, 1 - beta).rsqrt()
    rows = state[f"{name}_rows"].lerp_(matrix.mean(1), 1 - beta)
    columns = state[f"{name}_columns"].lerp_(matrix.mean(0), 1 - beta)
    return ((rows / rows.mean()).rsqrt().unsqueeze(1) * columns.rsqrt()).view_as(values)
