"""Prodigy (Mishchenko and Defazio 2024, arXiv 2306.06101, algorithm 4): Adam that finds how far it has to go.

Its distance d stays on the device: the published implementation reads two numbers of each weight at each step, for
which everybody waits. With the bias correction and the safeguard that its authors advise for diffusion models and
warm-up.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dreambooth.engine.training.factored_moments import VALUES_AT_ONCE, portions

_FIRST = 1e-6  # the distance that it begins with


class Prodigy(torch.optim.Optimizer):
    """Weight decay is decoupled. Keeps for each weight two means, a sum of its gradients, and where it began.

    All groups have one rate, a factor to what is found, or 0. States of the published implementation are gone on from.
    """

    def __init__(
        self,
        groups: Iterable[Any],
        lr: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        d_coef: float = 1.0,
    ) -> None:
        found = {"d": _FIRST, "d_max": _FIRST, "d_numerator": 0.0, "k": 0}
        chosen = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "d_coef": d_coef}
        super().__init__(groups, {**chosen, **found})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        first, rate = self.param_groups[0], max(group["lr"] for group in self.param_groups)
        if any(group["lr"] not in (rate, 0.0) for group in self.param_groups):
            raise ValueError("Prodigy has one rate for all of its groups, or 0.")
        weights = [weight for group in self.param_groups for weight in group["params"] if weight.grad is not None]
        if not weights or not rate:
            return
        self._begin([weight for weight in weights if not self.state[weight]])
        (beta1, beta2), steps = first["betas"], first["k"] + 1
        d = _beside(weights[0], first["d"])
        moved = d * (rate * (1 - beta2**steps) ** 0.5 / (1 - beta1**steps))

        inner, size = torch.zeros_like(d), torch.zeros_like(d)
        for group in self.param_groups:
            for some in portions(_learning(group), VALUES_AT_ONCE):
                inner += self._follow(some, d, group["betas"])
                size += torch.stack(torch._foreach_norm([self.state[weight]["s"] for weight in some], 1)).sum()
        numerator = _beside(d, first["d_numerator"]) * beta2**0.5 + inner * moved / _FIRST
        estimate = torch.where(size > 0, first["d_coef"] * numerator / size, 0)
        farthest = torch.maximum(_beside(d, first["d_max"]), estimate)

        for group in self.param_groups:
            group.update(d=farthest, d_max=farthest, d_numerator=numerator, k=steps)
            for some in portions(_learning(group), VALUES_AT_ONCE):
                self._move(some, moved, farthest, group)

    def _begin(self, weights: list[nn.Parameter]) -> None:
        if not weights:
            return
        # Once in a run: where a weight begins with zeros alone, as half of a LoRA does, that need not be kept.
        for weight, is_somewhere in zip(weights, torch.stack([weight.any() for weight in weights]).tolist()):
            self.state[weight] = {
                "s": torch.zeros_like(weight).flatten(),
                "p0": weight.detach().flatten().clone() if is_somewhere else weight.new_zeros(()),
                "exp_avg": torch.zeros_like(weight),
                "exp_avg_sq": torch.zeros_like(weight),
            }

    def _follow(self, some: list[nn.Parameter], d: Tensor, betas: tuple[float, float]) -> Tensor:
        """Moves what is kept to these gradients. Returns d times the product of these with the way gone so far, ()."""
        beta1, beta2 = betas
        states = [self.state[weight] for weight in some]
        sums, means, squares = ([_flat(state[name]) for state in states] for name in ("s", "exp_avg", "exp_avg_sq"))
        gradients = torch._foreach_mul([_flat(weight.grad) for weight in some], d)  # type: ignore[arg-type]
        torch._foreach_mul_(means, beta1)
        torch._foreach_add_(means, gradients, alpha=1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - beta2)

        whole = d.new_empty(sum(map(Tensor.numel, some)))
        ways = list(whole.split([weight.numel() for weight in some]))
        torch._foreach_copy_(ways, [_flat(weight.detach()) for weight in some])
        begun = [(way, state["p0"]) for way, state in zip(ways, states) if state["p0"].dim()]
        if begun:
            torch._foreach_sub_([way for way, _ in begun], [start for _, start in begun])
        torch._foreach_mul_(ways, gradients)

        torch._foreach_mul_(gradients, d)
        torch._foreach_mul_(sums, beta2**0.5)
        torch._foreach_add_(sums, gradients, alpha=1 / _FIRST)
        return -whole.sum()

    def _move(self, some: list[nn.Parameter], moved: Tensor, d: Tensor, group: dict[str, Any]) -> None:
        # mean / (root + d epsilon) as (mean / d) / (root / d + epsilon): a number that is added would be waited for.
        roots = torch._foreach_sqrt([self.state[weight]["exp_avg_sq"] for weight in some])
        torch._foreach_mul_(roots, 1 / d)
        torch._foreach_add_(roots, group["eps"])
        steps = torch._foreach_div([self.state[weight]["exp_avg"] for weight in some], roots)
        torch._foreach_mul_(steps, moved / d)
        if group["weight_decay"]:
            torch._foreach_mul_(some, 1 - group["weight_decay"] * moved)
        torch._foreach_sub_(some, steps)


def _learning(group: dict[str, Any]) -> list[nn.Parameter]:
    """Those of a group that have a gradient; none where its rate is 0."""
    return [weight for weight in group["params"] if weight.grad is not None] if group["lr"] else []


def _flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1) if tensor.is_contiguous() else tensor.contiguous().view(-1)


def _beside(tensor: Tensor, value: Tensor | float) -> Tensor:
    """A number on a tensor's device, () in its precision: there already, or a state's."""
    if isinstance(value, Tensor) and value.device == tensor.device:
        return value
    return tensor.new_full((), float(value))
