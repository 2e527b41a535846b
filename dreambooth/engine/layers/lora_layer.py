"""The LoRA layers that training works with: peft's, whose sums are done in few and large operations.

peft widens what comes in, multiplies, scales and adds one after another: about eleven operations each way for each of
the hundreds of small layers, and at a batch of one a GPU waits for most of them to be asked for. Here a layer takes
three on the way there and five on the way back, and the matrices of many layers are put into the precision of the
computation at once.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Hashable, Iterable, Iterator
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import Conv2d, Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d

ADAPTER = "default"
AT_ONCE = 16  # layers: hardly more operations than all at once, and hardly more memory than one by one


class AdapterLayer:
    """A layer whose matrices are put into the precision of the computation together with those of others."""

    cast: tuple[Tensor, ...] | None = None  # the matrices so, for one step
    scaling: dict[str, float]

    def matrices(self) -> tuple[Tensor, ...]:
        """What is learned."""
        raise NotImplementedError

    @property
    def form(self) -> Hashable:
        """What layers have in common whose matrices can be stacked."""
        return type(self), tuple((matrix.shape, matrix.device) for matrix in self.matrices())

    def squares(self, stacked: list[Tensor]) -> Tensor:
        """Of layers of this one's form, their matrices stacked, (layers, ...) each: the square of the norm of what each
        adds to its weight before the scale, (layers,)."""
        raise NotImplementedError


class _Pair(AdapterLayer):
    """A LoRA layer's A and B."""

    def matrices(self: Any) -> tuple[Tensor, ...]:
        return self.lora_A[ADAPTER].weight, self.lora_B[ADAPTER].weight

    def squares(self, stacked: list[Tensor]) -> Tensor:
        down, up = (side.flatten(2) for side in stacked)
        return product_squares(up, down)


class LoraLinear(_Pair, Linear):
    """y = W x + b + scale B A x. Dropout takes of A x, as the trainers do whose settings people share; peft takes of x,
    and each layer then keeps a copy of its input."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base, scale = self.get_base_layer(), self.scaling[ADAPTER]
        if self.disable_adapters:
            return base(x)  # type: ignore[no-any-return]
        x, weight, bias = at_hand(base, x)
        down, up = (matrix.to(x.dtype) for matrix in self.cast or self.matrices())
        dropout = self.lora_dropout[ADAPTER]
        if isinstance(dropout, nn.Identity) or not self.training:
            return _Product.apply(x, weight, bias, down, up, scale)  # type: ignore[no-any-return]
        return torch.add(base(x), dropout(x @ down.T) @ up.T, alpha=scale)


class LoraConv2d(_Pair, Conv2d):
    """The same for a convolution; A has its kernel, B is one pixel wide."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters:
            return self.get_base_layer()(x)  # type: ignore[no-any-return]
        dtype = computed_in(x)
        down, up = (matrix.to(dtype) for matrix in self.cast or self.matrices())
        plain, shape = self.get_base_layer()(x), self.lora_A[ADAPTER]
        inner = conv2d(x.to(dtype), down, None, shape.stride, shape.padding, shape.dilation)
        return torch.add(plain, conv2d(self.lora_dropout[ADAPTER](inner), up), alpha=self.scaling[ADAPTER])


def replace_layers(config: LoraConfig) -> LoraConfig:
    """Has peft make these layers in place of its own."""
    config._register_custom_module({nn.Linear: LoraLinear, nn.Conv2d: LoraConv2d})
    return config


def adapter_layers(modules: Iterable[nn.Module]) -> list[AdapterLayer]:
    """The LoRA layers of some modules, of each kind that is ours."""
    return [layer for one in modules for layer in one.modules() if isinstance(layer, AdapterLayer)]


@contextlib.contextmanager
def cast_at_once(layers: list[AdapterLayer], dtype: torch.dtype) -> Iterator[None]:
    """Within it the layers have their matrices in this precision, some of them cast together; gradients come back as
    exactly, and those of so many layers lie in this precision too until the last of them is there.

    It must last until the backward pass is done, as gradient checkpointing works the layers out again there.
    """
    if dtype == torch.float32 or not layers:
        yield
        return
    for start in range(0, len(layers), AT_ONCE):
        some = layers[start : start + AT_ONCE]
        matrices = [layer.matrices() for layer in some]
        cast = iter(_Cast.apply(dtype, *itertools.chain(*matrices)))
        for layer, own in zip(some, matrices):
            layer.cast = tuple(itertools.islice(cast, len(own)))
    try:
        yield
    finally:
        for layer in layers:
            layer.cast = None


def product_squares(left: Tensor, right: Tensor) -> Tensor:
    """(n, out, r) and (n, r, in) -> the square of the norm of each left @ right, (n,), which is not made:
    |L R|^2 = tr(L^T L R R^T)."""
    return (left.mT @ left).mul_(right @ right.mT).sum((1, 2))


def at_hand(base: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """The input, the weight and the bias of a linear layer in the precision of the computation."""
    dtype = computed_in(x)
    return x.to(dtype), base.weight.to(dtype), None if base.bias is None else base.bias.to(dtype)


def computed_in(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class _Product(torch.autograd.Function):
    """x (..., in), W (out, in), b (out,) or None, A (rank, in), B (out, rank) -> (..., out); W and b rest."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        inner = rows @ down.T
        out = rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)
        out.addmm_(inner, up.T, alpha=scale)
        ctx.save_for_backward(rows, weight, down, up, inner)
        ctx.scale, ctx.shape = scale, x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, down, up, inner = ctx.saved_tensors
        of_out = gradient.reshape(-1, gradient.shape[-1])
        of_inner, of_x = of_out @ up, None
        if ctx.needs_input_grad[0]:
            of_x = (of_out @ weight).addmm_(of_inner, down, alpha=ctx.scale).view(ctx.shape)
        # With beta=0 the first argument only says where; the scale then costs no operation of its own.
        of_down = torch.addmm(down, of_inner.T, rows, beta=0, alpha=ctx.scale)
        of_up = torch.addmm(up, of_out.T, inner, beta=0, alpha=ctx.scale)
        return of_x, None, None, of_down, of_up, None


class _Cast(torch.autograd.Function):
    """Many tensors into another precision, and their gradients back, in as few operations as the device allows."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.dtype = tensors[0].dtype
        return _copied(tensors, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        there = [gradient for gradient in gradients if gradient is not None]
        copies = iter(_copied(there, ctx.dtype) if there else ())
        return None, *(None if gradient is None else next(copies) for gradient in gradients)


def _copied(tensors: Iterable[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    sources = list(tensors)
    made = [torch.empty_like(one, dtype=dtype) for one in sources]
    torch._foreach_copy_(made, sources)
    return tuple(made)
