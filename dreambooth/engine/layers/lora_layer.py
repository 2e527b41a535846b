"""The LoRA layers for training: peft's, computed with fewer and larger operations.

peft upcasts its input, multiplies, scales and adds one after another: about eleven operations forward and as many
backward for each of hundreds of small layers, and at a batch size of 1 a GPU waits for most of them to be launched.
Here a layer takes three operations forward and five backward, and the matrices of many layers are cast to the precision
of the computation at once.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import Conv2d, Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d

ADAPTER = "default"
CAST_TOGETHER = 16  # layers: hardly more operations than for all at once, and hardly more memory than one by one


class AdapterLayer:
    """An adapted layer whose matrices are cast together with those of others, and whose norm can be limited."""

    cast: tuple[Tensor, ...] | None = None  # the matrices in the precision of the computation, during `cast_at_once`
    scaling: dict[str, float]

    def matrices(self) -> tuple[Tensor, ...]:
        """The trained matrices."""
        raise NotImplementedError

    @property
    def stack_key(self) -> Hashable:
        """Equal for layers whose matrices can be stacked."""
        return type(self), tuple((matrix.shape, matrix.device) for matrix in self.matrices())

    def squared_norms(self, stacked: list[Tensor]) -> Tensor:
        """The squared Frobenius norms of the unscaled weight deltas of layers with this one's `stack_key`, (layers,).

        `stacked` are their matrices, (layers, ...) each.
        """
        raise NotImplementedError


class LoraMatrices(AdapterLayer):
    """The matrices A and B of a LoRA layer."""

    def matrices(self: Any) -> tuple[Tensor, ...]:
        return self.lora_A[ADAPTER].weight, self.lora_B[ADAPTER].weight

    def squared_norms(self, stacked: list[Tensor]) -> Tensor:
        down, up = (side.flatten(2) for side in stacked)
        return squared_product_norms(up, down)


class LoraLinear(LoraMatrices, Linear):
    """y = W x + b + scale B A x.

    Dropout is applied to A x, as in the trainers whose settings people share. peft applies it to x, for which each
    layer keeps a copy of its input.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base, scale = self.get_base_layer(), self.scaling[ADAPTER]
        if self.disable_adapters:
            return base(x)  # type: ignore[no-any-return]
        x, weight, bias = cast_linear(base, x)
        down, up = (matrix.to(x.dtype) for matrix in self.cast or self.matrices())
        dropout = self.lora_dropout[ADAPTER]
        if isinstance(dropout, nn.Identity) or not self.training:
            return _LoraProduct.apply(x, weight, bias, down, up, scale)  # type: ignore[no-any-return]
        return torch.add(base(x), dropout(x @ down.T) @ up.T, alpha=scale)


class LoraConv2d(LoraMatrices, Conv2d):
    """y = conv(x, W) + b + scale B A x, where A is a convolution with the kernel size of W and B is a 1x1 one.

    Dropout is applied to A x, as in `LoraLinear`.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters:
            return self.get_base_layer()(x)  # type: ignore[no-any-return]
        dtype = computation_dtype(x)
        down, up = (matrix.to(dtype) for matrix in self.cast or self.matrices())
        base_output, conv = self.get_base_layer()(x), self.lora_A[ADAPTER]
        inner = conv2d(x.to(dtype), down, None, conv.stride, conv.padding, conv.dilation)
        return torch.add(base_output, conv2d(self.lora_dropout[ADAPTER](inner), up), alpha=self.scaling[ADAPTER])


def replace_layers(config: LoraConfig) -> LoraConfig:
    """Has peft create these layers in place of its own; returns the config."""
    config._register_custom_module({nn.Linear: LoraLinear, nn.Conv2d: LoraConv2d})
    return config


def adapter_layers(modules: Iterable[nn.Module]) -> list[AdapterLayer]:
    """The adapted layers of some modules that can be cast together: LoRA, DoRA, LoHa and LoKr."""
    return [layer for module in modules for layer in module.modules() if isinstance(layer, AdapterLayer)]


@contextlib.contextmanager
def cast_at_once(layers: list[AdapterLayer], dtype: torch.dtype) -> Iterator[None]:
    """Gives the layers their matrices in this dtype, of `CAST_TOGETHER` layers in one operation, until the block ends.

    Gradients reach the matrices in these matrices' own dtype, when those of the last layer of a group are there. The
    block must contain the backward pass, in which gradient checkpointing recomputes the layers.
    """
    if dtype == torch.float32 or not layers:
        yield
        return
    for start in range(0, len(layers), CAST_TOGETHER):
        group = layers[start : start + CAST_TOGETHER]
        matrices = [layer.matrices() for layer in group]
        cast = iter(_Cast.apply(dtype, *itertools.chain(*matrices)))
        for layer, own in zip(group, matrices):
            layer.cast = tuple(itertools.islice(cast, len(own)))
    try:
        yield
    finally:
        for layer in layers:
            layer.cast = None


def squared_product_norms(left: Tensor, right: Tensor) -> Tensor:
    """L (n, out, r) and R (n, r, in) -> the squared Frobenius norm of each L R, (n,), without computing the product:
    |L R|^2 = tr(L^T L R R^T)."""
    return (left.mT @ left).mul_(right @ right.mT).sum((1, 2))


def cast_linear(base: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """The input, the weight and the bias of a linear layer in the precision of the computation."""
    dtype = computation_dtype(x)
    return x.to(dtype), base.weight.to(dtype), None if base.bias is None else base.bias.to(dtype)


def computation_dtype(x: Tensor) -> torch.dtype:
    """The dtype of autocast where that is on, else the input's."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class _LoraProduct(torch.autograd.Function):
    """x (..., in), W (out, in), b (out,) or None, A (rank, in), B (out, rank) -> (..., out); W and b are frozen."""

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
        grad_out = gradient.reshape(-1, gradient.shape[-1])
        grad_inner, grad_x = grad_out @ up, None
        if ctx.needs_input_grad[0]:
            grad_x = (grad_out @ weight).addmm_(grad_inner, down, alpha=ctx.scale).view(ctx.shape)
        # With beta=0 the values of the first argument are ignored; so the scale costs no operation of its own.
        grad_down = torch.addmm(down, grad_inner.T, rows, beta=0, alpha=ctx.scale)
        grad_up = torch.addmm(up, grad_out.T, inner, beta=0, alpha=ctx.scale)
        return grad_x, None, None, grad_down, grad_up, None


class _Cast(torch.autograd.Function):
    """Casts many tensors to another dtype, and their gradients back, each in one operation where the device can."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.dtype = tensors[0].dtype
        return _cast(tensors, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        present = [gradient for gradient in gradients if gradient is not None]
        cast = iter(_cast(present, ctx.dtype) if present else ())
        return None, *(None if gradient is None else next(cast) for gradient in gradients)


def _cast(tensors: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    torch._foreach_copy_(copies, list(tensors))
    return tuple(copies)
