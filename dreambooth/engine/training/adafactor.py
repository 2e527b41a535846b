"""Adafactor (Shazeer and Stern 2018, arXiv 1804.04235) with a learning rate that it is given."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dreambooth.engine.training.factored_moments import Means, State, empty, limit_rms, sides, stackable, stacked

_CLIP = 1.0  # the largest root mean square of a step
_DECAY = -0.8  # the mean of squares forgets with 1 - step to this power
_MEANS = ("exp_avg_sq_row", "exp_avg_sq_col", "exp_avg_sq")


class Adafactor(torch.optim.Optimizer):
    """Algorithm 4 there, with weight decay that is decoupled. Keeps a row and a column of each weight, and with `beta1`
    a mean of its steps.

    transformers' Adafactor with another learning rate than its own gives the same steps, but that it counts the last
    two sides of a convolution's kernel as a matrix, of which it then keeps two thirds.
    """

    def __init__(
        self,
        groups: Iterable[Any],
        lr: float = 1e-3,
        beta1: float | None = None,
        eps: float = 1e-30,
        weight_decay: float = 0,
    ) -> None:
        super().__init__(groups, {"lr": lr, "beta1": beta1, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._prepare(weight, group)
            for some in stackable(group["params"], key=lambda weight: self.state[weight]["step"]):
                self._step(some, group)

    def _prepare(self, weight: nn.Parameter, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state.update(step=0, **empty(weight, *_MEANS))
            if group["beta1"] is not None:
                state["exp_avg"] = torch.zeros_like(weight, dtype=torch.float32)
        elif "RMS" in state:  # transformers' own, as they were used until 2026
            _take_over(state, weight)

    def _step(self, some: list[nn.Parameter], group: dict[str, Any]) -> None:
        states, rate, beta1 = [self.state[weight] for weight in some], group["lr"], group["beta1"]
        for state in states:
            state["step"] += 1
        # A run that goes on from transformers' states has its pair, the second for rates that depend on the weights.
        epsilon = group["eps"][0] if isinstance(group["eps"], (tuple, list)) else group["eps"]
        steps, each = stacked([weight.grad for weight in some])  # type: ignore[misc]
        means = Means(states, *_MEANS)
        means.update(steps, 1 - states[0]["step"] ** _DECAY, epsilon)
        means.divide(steps)
        limit_rms(steps, each, _CLIP)
        if group["weight_decay"]:
            torch._foreach_mul_(some, 1 - rate * group["weight_decay"])
        if beta1 is None:
            torch._foreach_add_(some, each, alpha=-rate)
            return
        smooth = [state["exp_avg"] for state in states]
        torch._foreach_mul_(smooth, beta1)
        torch._foreach_add_(smooth, each, alpha=(1 - beta1) * rate)
        torch._foreach_sub_(some, smooth)


def _take_over(state: State, weight: Tensor) -> None:
    """Makes of transformers' state what it would be here, a kernel's means from what its own stand for."""
    del state["RMS"]
    if weight.dim() > 2:
        rows, columns = state["exp_avg_sq_row"], state["exp_avg_sq_col"]
        squares = (rows / rows.mean(-1, keepdim=True)).unsqueeze(-1) * columns.unsqueeze(-2)
        matrix = squares.view(sides(weight))
        state["exp_avg_sq_row"], state["exp_avg_sq_col"] = matrix.mean(1), matrix.mean(0)
