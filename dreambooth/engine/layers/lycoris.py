"""LoHa and LoKr layers that take few operations: peft's layers, whose class is replaced after peft has made them.

peft builds a weight delta of full size in float32, multiplies by it, adds and downcasts one after another, and draws a
random number for each layer, so that no step could be recorded and replayed. Here a LoKr layer multiplies by its two
factors in turn and never builds their Kronecker product; a LoHa layer builds its delta, which is no product of small
matrices, in the precision of the computation, and rebuilds it in the backward pass.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from peft.tuners import loha, lokr
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d

from dreambooth.engine.layers.lora_layer import (
    ADAPTER,
    AdapterLayer,
    cast_linear,
    computation_dtype,
    squared_product_norms,
)


class _Lycoris(AdapterLayer):
    """A LoHa or LoKr layer: its factors are found by peft's names."""

    adapter_layer_names: tuple[str, ...]

    def matrices(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, name)[ADAPTER] for name in self._names())

    @property
    def stack_key(self) -> Hashable:
        return super().stack_key, tuple(self._names())

    def _names(self) -> list[str]:
        return [name for name in self.adapter_layer_names if ADAPTER in getattr(self, name)]

    def cast_factors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The trained factors by peft's names, in this dtype."""
        return {name: factor.to(dtype) for name, factor in zip(self._names(), self.cast or self.matrices())}


class _Loha(_Lycoris):
    def squared_norms(self, stacked: list[Tensor]) -> Tensor:
        # One layer at a time: the delta is no product of small matrices and must be built.
        return torch.stack([self._squared_norm(dict(zip(self._names(), factors))) for factors in zip(*stacked)])

    def _squared_norm(self, factors: dict[str, Tensor]) -> Tensor:
        first, second = (
            _product(factors[f"hada_w{n}_a"], factors[f"hada_w{n}_b"], factors.get(f"hada_t{n}")) for n in (1, 2)
        )
        return first.mul_(second).square_().sum()


class _Lokr(_Lycoris):
    def squared_norms(self, stacked: list[Tensor]) -> Tensor:
        # The norm of a Kronecker product is the product of the norms.
        factors = dict(zip(self._names(), stacked))
        return _squared_factor_norms(factors, "lokr_w1") * _squared_factor_norms(factors, "lokr_w2")


class LohaLinear(_Loha, loha.Linear):
    """y = W x + b + scale (w1_a w1_b o w2_a w2_b) x, where o is the elementwise product."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters:
            return self.get_base_layer()(x)  # type: ignore[no-any-return]
        x, weight, bias = cast_linear(self.get_base_layer(), x)
        factors = (self.cast_factors(x.dtype)[f"hada_{name}"] for name in ("w1_a", "w1_b", "w2_a", "w2_b"))
        return _HadamardLinear.apply(x, weight, bias, self.scaling[ADAPTER], *factors)  # type: ignore[no-any-return]


class LohaConv2d(_Loha, loha.Conv2d):
    """y = conv(x, W) + b + scale conv(x, w1_a w1_b o w2_a w2_b), whose matrices are (out, in * height * width)."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base = self.get_base_layer()
        base_output = base(x)
        if self.disable_adapters:
            return base_output  # type: ignore[no-any-return]
        dtype = computation_dtype(x)
        factors, scale = self.cast_factors(dtype), self.scaling[ADAPTER]
        if "hada_t1" in factors:  # from a file with separate kernel factors
            delta, scale = self.get_delta_weight(ADAPTER).to(dtype), 1.0
        else:
            delta = _Hadamard.apply(*(factors[f"hada_{name}"] for name in ("w1_a", "w1_b", "w2_a", "w2_b")))
        kernel = delta.view(base.weight.shape)
        return torch.add(base_output, conv2d(x.to(dtype), kernel, None, *_conv_args(base)), alpha=scale)


class LokrLinear(_Lokr, lokr.Linear):
    """y = W x + b + scale (w1 (x) w2) x, where (x) is the Kronecker product and w1 and w2 may be low-rank products."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters:
            return self.get_base_layer()(x)  # type: ignore[no-any-return]
        x, weight, bias = cast_linear(self.get_base_layer(), x)
        factors = self.cast_factors(x.dtype)
        first, second = _factor(factors, "lokr_w1"), _factor(factors, "lokr_w2")
        return _KroneckerLinear.apply(x, weight, bias, first, second, self.scaling[ADAPTER])  # type: ignore[no-any-return]


class LokrConv2d(_Lokr, lokr.Conv2d):
    """y = conv(x, W) + b + scale conv(x, w1 (x) w2), where w1 is (a, b) and w2 (c, d, height, width)."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base = self.get_base_layer()
        base_output = base(x)
        if self.disable_adapters:
            return base_output  # type: ignore[no-any-return]
        dtype = computation_dtype(x)
        factors, scale, x = self.cast_factors(dtype), self.scaling[ADAPTER], x.to(dtype)
        if "lokr_t2" in factors:  # from a file with separate kernel factors
            delta = self.get_delta_weight(ADAPTER).to(dtype)
            return torch.add(base_output, conv2d(x, delta, None, *_conv_args(base)))
        first, second = _factor(factors, "lokr_w1"), _factor(factors, "lokr_w2")
        kernel = second.reshape(second.shape[0], -1, *base.kernel_size)
        split = x.reshape(-1, kernel.shape[1], *x.shape[2:])  # (B * b, d, height, width)
        inner = conv2d(split, kernel, None, *_conv_args(base))
        added = first @ inner.reshape(x.shape[0], first.shape[1], -1)  # (B, a, c * height * width)
        return torch.add(base_output, added.view(base_output.shape), alpha=scale)


_REPLACEMENTS: dict[type, type] = {
    loha.Linear: LohaLinear,
    loha.Conv2d: LohaConv2d,
    lokr.Linear: LokrLinear,
    lokr.Conv2d: LokrConv2d,
}


def replace_class(layer: nn.Module) -> None:
    """Gives a LoHa or LoKr layer of peft's the class above that takes its place; leaves other layers alone."""
    layer.__class__ = _REPLACEMENTS.get(type(layer), type(layer))


def _factor(factors: dict[str, Tensor], name: str) -> Tensor:
    """A factor of LoKr, which may be stored as a product of two."""
    return factors[name] if name in factors else factors[f"{name}_a"] @ factors[f"{name}_b"]


def _squared_factor_norms(stacked: dict[str, Tensor], name: str) -> Tensor:
    """The squared norms of a factor of several layers, (layers,)."""
    if name in stacked:
        return stacked[name].flatten(1).square().sum(1)
    first, second = stacked[f"{name}_a"], stacked[f"{name}_b"]
    if (core := stacked.get("lokr_t2")) is not None and name == "lokr_w2":
        return torch.stack([_product(*matrices).square().sum() for matrices in zip(first, second, core)])
    return squared_product_norms(first, second)


def _product(first: Tensor, second: Tensor, core: Tensor | None) -> Tensor:
    """(out, r) @ (r, in); with `core`, the separate kernel factor (r, r, height, width), contracted with both."""
    return first @ second if core is None else torch.einsum("ijkl,ip,jr->prkl", core, first, second)


def _conv_args(base: Any) -> tuple[Any, Any, Any]:
    return base.stride, base.padding, base.dilation


class _KroneckerLinear(torch.autograd.Function):
    """x (..., b d), W (a c, b d), bias (a c,) or None, w1 (a, b), w2 (c, d) -> (..., a c); W and the bias are frozen.

    (w1 (x) w2) x is computed as w1 X w2^T, where X (b, d) is a row of x.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, first: Tensor, second: Tensor, scale: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        out = rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)
        inner = (rows.view(-1, second.shape[1]) @ second.T).view(len(rows), first.shape[1], -1)  # (rows, b, c)
        _split_rows(out, first).baddbmm_(_expand_batch(first, rows), inner, alpha=scale)
        ctx.save_for_backward(rows, weight, first, second)
        ctx.scale, ctx.shape = scale, x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, first, second = ctx.saved_tensors
        grad_out = gradient.reshape(len(rows), -1)
        split = rows.view(-1, second.shape[1])  # (rows * b, d)
        grad_split = _split_rows(grad_out, first)  # (rows, a, c)
        grad_inner = torch.bmm(_expand_batch(first, rows).transpose(1, 2), grad_split)
        grad_inner = grad_inner.view(-1, second.shape[0])  # (rows * b, c)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad_out @ weight
            grad_x.view(split.shape).addmm_(grad_inner, second, alpha=ctx.scale)
            grad_x = grad_x.view(ctx.shape)
        grad_second = torch.addmm(second, grad_inner.T, split, beta=0, alpha=ctx.scale)
        # The sum over rows is part of the matrix product, which accumulates in float32 also for half precision.
        inner = (split @ second.T).view(len(rows), first.shape[1], -1)  # (rows, b, c)
        flat_grad, flat_inner = (one.transpose(0, 1).reshape(one.shape[1], -1) for one in (grad_split, inner))
        grad_first = torch.addmm(first, flat_grad, flat_inner.T, beta=0, alpha=ctx.scale)
        return grad_x, None, None, grad_first, grad_second, None


def _split_rows(rows: Tensor, first: Tensor) -> Tensor:
    """(n, a c) -> (n, a, c), where `first` is (a, b)."""
    return rows.view(len(rows), first.shape[0], -1)


def _expand_batch(matrix: Tensor, rows: Tensor) -> Tensor:
    """A matrix, repeated without a copy for each row."""
    return matrix.expand(len(rows), *matrix.shape)


class _HadamardLinear(torch.autograd.Function):
    """x (..., in), W (out, in), bias (out,) or None, w1_a, w1_b, w2_a, w2_b -> (..., out).

    The factors are (out, rank) and (rank, in); W and the bias are frozen.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, scale: float, *factors: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        out = rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)
        a1, b1, a2, b2 = factors
        out.addmm_(rows, (a1 @ b1).mul_(a2 @ b2).T, alpha=scale)
        ctx.save_for_backward(rows, weight, *factors)
        ctx.scale, ctx.shape = scale, x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, a1, b1, a2, b2 = ctx.saved_tensors
        grad_out = gradient.reshape(len(rows), -1)
        first, second = a1 @ b1, a2 @ b2
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad_out @ weight).addmm_(grad_out, first * second, alpha=ctx.scale).view(ctx.shape)
        grad_delta = torch.addmm(first, grad_out.T, rows, beta=0, alpha=ctx.scale)
        return grad_x, None, None, None, *_factor_gradients(grad_delta, first, second, a1, b1, a2, b2)


class _Hadamard(torch.autograd.Function):
    """a1, a2 (out, rank) and b1, b2 (rank, in) -> (a1 b1) o (a2 b2), (out, in)."""

    @staticmethod
    def forward(ctx: Any, a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor) -> Tensor:
        ctx.save_for_backward(a1, b1, a2, b2)
        return (a1 @ b1).mul_(a2 @ b2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        a1, b1, a2, b2 = ctx.saved_tensors
        return _factor_gradients(gradient, a1 @ b1, a2 @ b2, a1, b1, a2, b2)


def _factor_gradients(
    grad_delta: Tensor, first: Tensor, second: Tensor, a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor
) -> tuple[Tensor, ...]:
    """The gradients of the factors from that of the delta. `first` = a1 b1 and `second` = a2 b2 are overwritten."""
    grad_first, grad_second = second.mul_(grad_delta), first.mul_(grad_delta)
    return grad_first @ b1.T, a1.T @ grad_first, grad_second @ b2.T, a2.T @ grad_second
