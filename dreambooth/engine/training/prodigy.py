"""Prodigy (Mishchenko and Defazio 2024, arXiv 2306.06101, algorithm 4): Adam that estimates the distance d from the
initial weights to the solution, and with it the step size.

d stays on the device: the published implementation reads two numbers of each weight at each step, for which the CPU
waits. With the bias correction and the safeguard that its authors advise for diffusion models and
warm-up.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dreambooth.engine.training.factored_moments import VALUES_AT_ONCE, portions

_D0 = 1e-6  # the initial estimate of the distance d


class Prodigy(torch.optim.Optimizer):
    """Weight decay is decoupled. The state of each weight is that of the published implementation, and its saved states
    can be loaded: exp_avg and exp_avg_sq as in Adam; s, a weighted sum of gradients; and p0, the initial value.

    All groups have the same learning rate, a factor of the estimated step size, or 0.
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
        state = {"d": _D0, "d_max": _D0, "d_numerator": 0.0, "k": 0}
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "d_coef": d_coef}
        super().__init__(groups, {**options, **state})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        first, rate = self.param_groups[0], max(group["lr"] for group in self.param_groups)
        if any(group["lr"] not in (rate, 0.0) for group in self.param_groups):
            raise ValueError("Prodigy has one rate for all of its groups, or 0.")
        weights = [weight for group in self.param_groups for weight in group["params"] if weight.grad is not None]
        if not weights or not rate:
            return
        self._initialize([weight for weight in weights if not self.state[weight]])
        (beta1, beta2), steps = first["betas"], first["k"] + 1
        d = _scalar_like(weights[0], first["d"])
        dlr = d * (rate * (1 - beta2**steps) ** 0.5 / (1 - beta1**steps))

        dot_product, denominator = torch.zeros_like(d), torch.zeros_like(d)
        for group in self.param_groups:
            for some in portions(_with_gradients(group), VALUES_AT_ONCE):
                dot_product += self._update_moments(some, d, group["betas"])
                denominator += torch.stack(torch._foreach_norm([self.state[one]["s"] for one in some], 1)).sum()
        numerator = _scalar_like(d, first["d_numerator"]) * beta2**0.5 + dot_product * dlr / _D0
        estimate = torch.where(denominator > 0, first["d_coef"] * numerator / denominator, 0)
        new_d = torch.maximum(_scalar_like(d, first["d_max"]), estimate)

        for group in self.param_groups:
            group.update(d=new_d, d_max=new_d, d_numerator=numerator, k=steps)
            for some in portions(_with_gradients(group), VALUES_AT_ONCE):
                self._update_weights(some, dlr, new_d, group)

    def _initialize(self, weights: list[nn.Parameter]) -> None:
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

    def _update_moments(self, some: list[nn.Parameter], d: Tensor, betas: tuple[float, float]) -> Tensor:
        """Updates the moments and s with the gradients g of some weights p. Returns d <g, p0 - p>, ()."""
        beta1, beta2 = betas
        states = [self.state[weight] for weight in some]
        sums, means, squares = ([_flat(state[name]) for state in states] for name in ("s", "exp_avg", "exp_avg_sq"))
        gradients = torch._foreach_mul([_flat(weight.grad) for weight in some], d)  # type: ignore[arg-type]
        torch._foreach_mul_(means, beta1)
        torch._foreach_add_(means, gradients, alpha=1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - beta2)

        whole = d.new_empty(sum(map(Tensor.numel, some)))
        distances = list(whole.split([weight.numel() for weight in some]))
        torch._foreach_copy_(distances, [_flat(weight.detach()) for weight in some])
        from_p0 = [(distance, state["p0"]) for distance, state in zip(distances, states) if state["p0"].dim()]
        if from_p0:
            torch._foreach_sub_([distance for distance, _ in from_p0], [start for _, start in from_p0])
        torch._foreach_mul_(distances, gradients)

        torch._foreach_mul_(gradients, d)
        torch._foreach_mul_(sums, beta2**0.5)
        torch._foreach_add_(sums, gradients, alpha=1 / _D0)
        return -whole.sum()

    def _update_weights(self, some: list[nn.Parameter], dlr: Tensor, d: Tensor, group: dict[str, Any]) -> None:
        # mean / (root + d epsilon) as (mean / d) / (root / d + epsilon): a number that is added would be waited for.
        roots = torch._foreach_sqrt([self.state[weight]["exp_avg_sq"] for weight in some])
        torch._foreach_mul_(roots, 1 / d)
        torch._foreach_add_(roots, group["eps"])
        steps = torch._foreach_div([self.state[weight]["exp_avg"] for weight in some], roots)
        torch._foreach_mul_(steps, dlr / d)
        if group["weight_decay"]:
            torch._foreach_mul_(some, 1 - group["weight_decay"] * dlr)
        torch._foreach_sub_(some, steps)


def _with_gradients(group: dict[str, Any]) -> list[nn.Parameter]:
    """The weights of a group that have a gradient; none where its learning rate is 0."""
    return [weight for weight in group["params"] if weight.grad is not None] if group["lr"] else []


def _flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1) if tensor.is_contiguous() else tensor.contiguous().view(-1)


def _scalar_like(tensor: Tensor, value: Tensor | float) -> Tensor:
    """A value as a tensor (), on the device and in the precision of another tensor."""
    if isinstance(value, Tensor) and value.device == tensor.device:
        return value
    return tensor.new_full((), float(value))
