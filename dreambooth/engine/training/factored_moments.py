"""Running means of squares that are held as a row and a column, for many weights of the same sides at once.

Shazeer and Stern 2018, "Adafactor" (arXiv 1804.04235), section 3: the squares of a matrix's gradient are about the
product of the means of their rows and of their columns. A convolution's kernel counts as (out, everything else); what
has one side or none is held whole.

A step on one weight is some twenty small operations, and a GPU waits for most of them to be asked for. So the weights
of the same sides are stacked, and an operation is done on all of them. Each weight's numbers are its own and do not
depend on which others are beside it; its states stay its own, too.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

VALUES_AT_ONCE = 2**24  # of weights that are stacked, in full precision: 64 MiB; a larger one is alone

State = dict[str, Any]  # of one weight, by name


def sides(weight: Tensor) -> tuple[int, ...]:
    """(out, everything else) of what is held as a row and a column; (values,) of what is held whole."""
    return (weight.shape[0], weight[0].numel()) if weight.dim() > 1 else (weight.numel(),)


def alike(weights: Iterable[nn.Parameter], key: Any = lambda weight: None) -> Iterator[list[nn.Parameter]]:
    """The weights that have a gradient, in lists of the same sides and key, each of so many values at most."""
    lists: dict[Hashable, list[nn.Parameter]] = {}
    for weight in weights:
        if weight.grad is not None:
            lists.setdefault((sides(weight), weight.device, weight.dtype, key(weight)), []).append(weight)
    for some in lists.values():
        together = max(1, VALUES_AT_ONCE // max(1, some[0].numel()))
        for start in range(0, len(some), together):
            yield some[start : start + together]


def portions(weights: Iterable[nn.Parameter], most: int) -> Iterator[list[nn.Parameter]]:
    """The weights in their order, in lists of so many values at most; a larger one is alone."""
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
    """Copies of tensors of the same sides in full precision: (n, *sides), and each as it lies there, in its shape."""
    stack = torch.empty((len(tensors), *sides(tensors[0])), dtype=torch.float32, device=tensors[0].device)
    each = [one.view(tensor.shape) for one, tensor in zip(stack.unbind(), tensors)]
    torch._foreach_copy_(each, tensors)
    return stack, each


def empty(weight: Tensor, rows: str, columns: str, whole: str) -> dict[str, Tensor]:
    """The means of a weight that has taken no step yet, under these names, float32."""
    found = sides(weight)
    names = (rows, columns) if len(found) == 2 else (whole,)
    shapes = [(side,) for side in found] if len(found) == 2 else [weight.shape]
    return {name: torch.zeros(shape, device=weight.device) for name, shape in zip(names, shapes)}


class Means:
    """The means of some weights of the same sides, under the names that `empty` was given."""

    def __init__(self, states: list[State], rows: str, columns: str, whole: str) -> None:
        self.is_whole = whole in states[0]
        names = (whole,) if self.is_whole else (rows, columns)
        self.kept = [[state[name] for state in states] for name in names]  # a list for each name

    def follow(self, values: Tensor, beta: float, epsilon: float) -> None:
        """Moves them to the squares of values (n, *sides), to which epsilon is added."""
        every = [mean for means in self.kept for mean in means]
        torch._foreach_mul_(every, beta)
        if self.is_whole:
            squares = [one.view_as(mean) for one, mean in zip(values.unbind(), every)]
            torch._foreach_addcmul_(every, squares, squares, value=1 - beta)
        else:
            # A norm squares and adds up at once, so that the squares need no room.
            count, (rows, columns) = len(values), values.shape[1:]
            norms = [norm for dim in (2, 1) for norm in torch.linalg.vector_norm(values, dim=dim).unbind()]
            shares = [(1 - beta) / columns] * count + [(1 - beta) / rows] * count
            torch._foreach_addcmul_(every, norms, norms, shares)
        torch._foreach_add_(every, (1 - beta) * epsilon)

    def divide(self, values: Tensor) -> None:
        """Divides values (n, *sides) by the roots of these means, in their place."""
        if self.is_whole:
            values.mul_(stacked(self.kept[0])[0].rsqrt_())
            return
        rows, columns = (torch.stack(means) for means in self.kept)
        rows.div_(rows.mean(1, keepdim=True))
        torch._foreach_rsqrt_([rows, columns])
        values.mul_(rows.unsqueeze(2)).mul_(columns.unsqueeze(1))


def shorten(values: Tensor, each: list[Tensor], most: float) -> None:
    """Scales each of values (n, *sides) so that the root of its mean square is at most this, in its place."""
    sizes = torch.stack(torch._foreach_norm(each)).div_(most * each[0].numel() ** 0.5).clamp_(min=1)
    values.div_(sizes.view(-1, *[1] * (values.dim() - 1)))
