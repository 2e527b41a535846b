"""LoHa and LoKr layers with few operations: peft's, which are made these once it has made them.

peft builds a change as large as the weight in full precision, multiplies by it, adds and narrows one after another, and
draws a number for each layer, so that no step could be written down and done again. Here a LoKr layer multiplies by
its two factors in turn and never builds their Kronecker product; a LoHa layer builds its change, which is no product
of small matrices, in the precision of the computation and again on the way back.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from peft.tuners import loha, lokr
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d

from dreambooth.engine.layers.lora_layer import ADAPTER, AdapterLayer, at_hand, computed_in, product_squares


class _Lycoris(AdapterLayer):
    """What both kinds have of a layer of peft's."""

    adapter_layer_names: tuple[str, ...]

    def matrices(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, name)[ADAPTER] for name in self._names())

    @property
    def form(self) -> Hashable:
        return super().form, tuple(self._names())

    def _names(self) -> list[str]:
        return [name for name in self.adapter_layer_names if ADAPTER in getattr(self, name)]

    def _found(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """What is learned, by peft's names, in the precision of the computation."""
        return {name: one.to(dtype) for name, one in zip(self._names(), self.cast or self.matrices())}


class _Loha(_Lycoris):
    """What LoHa's layers have of each other."""

    def squares(self, stacked: list[Tensor]) -> Tensor:
        """A layer at a time, as what it adds is no product of small matrices and must be made."""
        return torch.stack([self._square(dict(zip(self._names(), one))) for one in zip(*stacked)])

    def _square(self, of: dict[str, Tensor]) -> Tensor:
        first, second = (_product(of[f"hada_w{n}_a"], of[f"hada_w{n}_b"], of.get(f"hada_t{n}")) for n in (1, 2))
        return first.mul_(second).square_().sum()


class _Lokr(_Lycoris):
    """What LoKr's have."""

    def squares(self, stacked: list[Tensor]) -> Tensor:
        found = dict(zip(self._names(), stacked))
        return _factor_squares(found, "lokr_w1") * _factor_squares(found, "lokr_w2")


class LohaLinear(_Loha, loha.Linear):
    """y = W x + b + scale (w1_a w1_b o w2_a w2_b) x."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters:
            return self.get_base_layer()(x)  # type: ignore[no-any-return]
        x, weight, bias = at_hand(self.get_base_layer(), x)
        halves = (self._found(x.dtype)[f"hada_{name}"] for name in ("w1_a", "w1_b", "w2_a", "w2_b"))
        return _HadamardLinear.apply(x, weight, bias, self.scaling[ADAPTER], *halves)  # type: ignore[no-any-return]


class LohaConv2d(_Loha, loha.Conv2d):
    """The same for a convolution, whose kernel counts as inputs."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base = self.get_base_layer()
        plain = base(x)
        if self.disable_adapters:
            return plain  # type: ignore[no-any-return]
        dtype = computed_in(x)
        found, scale = self._found(dtype), self.scaling[ADAPTER]
        if "hada_t1" in found:  # of a file that holds kernels apart
            change, scale = self.get_delta_weight(ADAPTER).to(dtype), 1.0
        else:
            change = _Hadamard.apply(*(found[f"hada_{name}"] for name in ("w1_a", "w1_b", "w2_a", "w2_b")))
        kernel = change.view(base.weight.shape)
        return torch.add(plain, conv2d(x.to(dtype), kernel, None, *_reach(base)), alpha=scale)


class LokrLinear(_Lokr, lokr.Linear):
    """y = W x + b + scale (w1 (x) w2) x, where either factor may be a product of two."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters:
            return self.get_base_layer()(x)  # type: ignore[no-any-return]
        x, weight, bias = at_hand(self.get_base_layer(), x)
        found = self._found(x.dtype)
        first, second = _factor(found, "lokr_w1"), _factor(found, "lokr_w2")
        return _Kronecker.apply(x, weight, bias, first, second, self.scaling[ADAPTER])  # type: ignore[no-any-return]


class LokrConv2d(_Lokr, lokr.Conv2d):
    """The same for a convolution: the second factor has its kernel."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base = self.get_base_layer()
        plain = base(x)
        if self.disable_adapters:
            return plain  # type: ignore[no-any-return]
        dtype = computed_in(x)
        found, scale, x = self._found(dtype), self.scaling[ADAPTER], x.to(dtype)
        if "lokr_t2" in found:  # of a file that holds kernels apart
            change = self.get_delta_weight(ADAPTER).to(dtype)
            return torch.add(plain, conv2d(x, change, None, *_reach(base)))
        first, second = _factor(found, "lokr_w1"), _factor(found, "lokr_w2")
        kernel = second.reshape(second.shape[0], -1, *base.kernel_size)
        parts = x.reshape(-1, kernel.shape[1], *x.shape[2:])  # (pictures * b, d, height, width)
        inner = conv2d(parts, kernel, None, *_reach(base))
        change = first @ inner.reshape(x.shape[0], first.shape[1], -1)  # (pictures, a, c * height * width)
        return torch.add(plain, change.view(plain.shape), alpha=scale)


_OURS: dict[type, type] = {
    loha.Linear: LohaLinear,
    loha.Conv2d: LohaConv2d,
    lokr.Linear: LokrLinear,
    lokr.Conv2d: LokrConv2d,
}


def use(layer: nn.Module) -> None:
    """Makes one of these of a layer of peft's; leaves others."""
    layer.__class__ = _OURS.get(type(layer), type(layer))


def _factor(found: dict[str, Tensor], name: str) -> Tensor:
    return found[name] if name in found else found[f"{name}_a"] @ found[f"{name}_b"]


def _factor_squares(stacked: dict[str, Tensor], name: str) -> Tensor:
    """The square of the norm of each of many factors, (layers,)."""
    if name in stacked:
        return stacked[name].flatten(1).square().sum(1)
    first, second = stacked[f"{name}_a"], stacked[f"{name}_b"]
    if (core := stacked.get("lokr_t2")) is not None and name == "lokr_w2":
        return torch.stack([_product(*one).square().sum() for one in zip(first, second, core)])
    return product_squares(first, second)


def _product(first: Tensor, second: Tensor, core: Tensor | None) -> Tensor:
    """(out, r) @ (r, in); of a file that holds kernels apart with these, (r, r, height, width), between."""
    return first @ second if core is None else torch.einsum("ijkl,ip,jr->prkl", core, first, second)


def _reach(base: Any) -> tuple[Any, Any, Any]:
    return base.stride, base.padding, base.dilation


class _Kronecker(torch.autograd.Function):
    """x (..., b d), W (a c, b d), bias (a c,) or None, w1 (a, b), w2 (c, d) -> (..., a c); W and the bias rest."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, first: Tensor, second: Tensor, scale: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        out = rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)
        inner = rows.view(-1, second.shape[1]) @ second.T
        _each(out, first).baddbmm_(_many(first, rows), inner.view(len(rows), first.shape[1], -1), alpha=scale)
        ctx.save_for_backward(rows, weight, first, second)
        ctx.scale, ctx.shape = scale, x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, first, second = ctx.saved_tensors
        of_out = gradient.reshape(len(rows), -1)
        parts = rows.view(-1, second.shape[1])  # (rows * b, d)
        outer = _each(of_out, first)  # (rows, a, c)
        of_inner = torch.bmm(_many(first, rows).transpose(1, 2), outer).view(-1, second.shape[0])  # (rows * b, c)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = of_out @ weight
            of_x.view(parts.shape).addmm_(of_inner, second, alpha=ctx.scale)
            of_x = of_x.view(ctx.shape)
        of_second = torch.addmm(second, of_inner.T, parts, beta=0, alpha=ctx.scale)
        # The rows are summed up in the product itself, where half precision loses nothing.
        inner = (parts @ second.T).view(len(rows), first.shape[1], -1)  # (rows, b, c)
        flat_outer, flat_inner = (one.transpose(0, 1).reshape(one.shape[1], -1) for one in (outer, inner))
        of_first = torch.addmm(first, flat_outer, flat_inner.T, beta=0, alpha=ctx.scale)
        return of_x, None, None, of_first, of_second, None


def _each(rows: Tensor, first: Tensor) -> Tensor:
    """Rows (n, a c) as (n, a, c)."""
    return rows.view(len(rows), first.shape[0], -1)


def _many(matrix: Tensor, rows: Tensor) -> Tensor:
    return matrix.expand(len(rows), *matrix.shape)


class _HadamardLinear(torch.autograd.Function):
    """x (..., in), W (out, in), bias (out,) or None, a (out, rank) and b (rank, in) twice -> (..., out)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, scale: float, *halves: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        out = rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)
        a1, b1, a2, b2 = halves
        out.addmm_(rows, (a1 @ b1).mul_(a2 @ b2).T, alpha=scale)
        ctx.save_for_backward(rows, weight, *halves)
        ctx.scale, ctx.shape = scale, x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, *halves = ctx.saved_tensors
        of_out = gradient.reshape(len(rows), -1)
        one, other = halves[0] @ halves[1], halves[2] @ halves[3]
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (of_out @ weight).addmm_(of_out, one * other, alpha=ctx.scale).view(ctx.shape)
        of_change = torch.addmm(one, of_out.T, rows, beta=0, alpha=ctx.scale)
        return of_x, None, None, None, *_of_halves(of_change, one, other, *halves)


class _Hadamard(torch.autograd.Function):
    """a (out, rank) and b (rank, in) twice -> (a b) o (a b), (out, in)."""

    @staticmethod
    def forward(ctx: Any, a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor) -> Tensor:
        ctx.save_for_backward(a1, b1, a2, b2)
        return (a1 @ b1).mul_(a2 @ b2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        a1, b1, a2, b2 = ctx.saved_tensors
        return _of_halves(gradient, a1 @ b1, a2 @ b2, a1, b1, a2, b2)


def _of_halves(
    of_change: Tensor, one: Tensor, other: Tensor, a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor
) -> tuple[Tensor, ...]:
    """The gradients of both pairs from that of their change and their products, which are used up."""
    other.mul_(of_change)
    one.mul_(of_change)
    return other @ b1.T, a1.T @ other, one @ b2.T, a2.T @ one
