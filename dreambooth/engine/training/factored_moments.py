"""Factored second moments: running means of squares that are stored as a row and a column, for many weights at once.

Shazeer and Stern 2018, "Adafactor" (arXiv 1804.04235), section 3: the squares of a matrix's gradient are approximated
by the product of their row means and their column means. A convolution's kernel is a matrix (out, everything else);
vectors and scalars have unfactored moments.

A step on one weight takes some twenty small operations, and a GPU waits for most of them to be launched. So weights of
the same matrix shape are stacked, and each operation works on all of them. The results of a weight do not depend on
which others are in its stack, and each weight has its own states.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

VALUES_AT_ONCE = 2**24  # of weights that are stacked, in float32: 64 MiB; a larger one is alone

State = dict[str, Any]  # of one weight, by name


def sides(weight: Tensor) -> tuple[int, ...]:
    """The matrix shape of a weight, (out, everything else); (values,) for vectors and scalars."""
    return (weight.shape[0], weight[0].numel()) if weight.dim() > 1 else (weight.numel(),)


def stackable(weights: Iterable[nn.Parameter], key: Any = lambda weight: None) -> Iterator[list[nn.Parameter]]:
    """The weights with a gradient, in lists of the same matrix shape and `key`, of at most VALUES_AT_ONCE values."""
    lists: dict[Hashable, list[nn.Parameter]] = {}
    for weight in weights:
        if weight.grad is not None:
            lists.setdefault((sides(weight), weight.device, weight.dtype, key(weight)), []).append(weight)
    for some in lists.values():
        together = max(1, VALUES_AT_ONCE // max(1, some[0].numel()))
        for start in range(0, len(some), together):
            yield some[start : start + together]


def portions(weights: Iterable[nn.Parameter], most: int) -> Iterator[list[nn.Parameter]]:
    """The weights in their order, in lists of at most `most` values; a larger weight is alone."""
    some: list[nn.Parameter] = []
    values = 0
    for weight in weights:
        if some and values + weight.numel() > most:
            yield some
            some, values = [], 0
        some.append(weight)
        values += weight.numel()
    if some:
        yield some


def stacked(tensors: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Copies in float32 of n tensors of one matrix shape: the stack (n, *sides), and views of it in their shapes."""
    stack = torch.empty((len(tensors), *sides(tensors[0])), dtype=torch.float32, device=tensors[0].device)
    each = [one.view(tensor.shape) for one, tensor in zip(stack.unbind(), tensors)]
    torch._foreach_copy_(each, tensors)
    return stack, each


def empty(weight: Tensor, rows: str, columns: str, whole: str) -> dict[str, Tensor]:
    """The moments of a weight before its first step, by the names `rows` and `columns`, or `whole`; float32."""
    matrix = sides(weight)
    names = (rows, columns) if len(matrix) == 2 else (whole,)
    shapes = [(side,) for side in matrix] if len(matrix) == 2 else [weight.shape]
    return {name: torch.zeros(shape, device=weight.device) for name, shape in zip(names, shapes)}


class Means:
    """The moments of weights of the same matrix shape, in their states, by the names that `empty` was given."""

    def __init__(self, states: list[State], rows: str, columns: str, whole: str) -> None:
        self.is_unfactored = whole in states[0]
        names = (whole,) if self.is_unfactored else (rows, columns)
        self.moments = [[state[name] for state in states] for name in names]  # a list for each name

    def update(self, values: Tensor, beta: float, epsilon: float) -> None:
        """Updates the running means with the squares of values (n, *sides), to which epsilon is added."""
        every = [mean for means in self.moments for mean in means]
        torch._foreach_mul_(every, beta)
        if self.is_unfactored:
            squares = [one.view_as(mean) for one, mean in zip(values.unbind(), every)]
            torch._foreach_addcmul_(every, squares, squares, value=1 - beta)
        else:
            # A norm squares and adds in one operation, so that the squares take no memory.
            count, (rows, columns) = len(values), values.shape[1:]
            norms = [norm for dim in (2, 1) for norm in torch.linalg.vector_norm(values, dim=dim).unbind()]
            shares = [(1 - beta) / columns] * count + [(1 - beta) / rows] * count
            torch._foreach_addcmul_(every, norms, norms, shares)
        torch._foreach_add_(every, (1 - beta) * epsilon)

    def divide(self, values: Tensor) -> None:
        """Divides values (n, *sides) in place by the square roots of the moments."""
        if self.is_unfactored:
            values.mul_(stacked(self.moments[0])[0].rsqrt_())
            return
        rows, columns = (torch.stack(means) for means in self.moments)
        rows.div_(rows.mean(1, keepdim=True))
        torch._foreach_rsqrt_([rows, columns])
        values.mul_(rows.unsqueeze(2)).mul_(columns.unsqueeze(1))


def limit_rms(values: Tensor, each: list[Tensor], most: float) -> None:
    """Scales values (n, *sides), of which `each` are views, in place: each one's root mean square is at most `most`."""
    sizes = torch.stack(torch._foreach_norm(each)).div_(most * each[0].numel() ** 0.5).clamp_(min=1)
    values.div_(sizes.view(-1, *[1] * (values.dim() - 1)))
