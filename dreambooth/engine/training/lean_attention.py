"""Attention that keeps nothing of its largest matrix for the backward pass, where PyTorch's own would: on an Apple GPU.

A card's kernels work softmax(Q K^T / sqrt(d)), which has a number for each two places of a picture, out again in the
backward pass, in parts (Dao et al. 2022, arXiv 2205.14135, section 3.1). PyTorch has none for an Apple GPU that can be
trained through and keeps the matrix of every layer instead: 3.7 GiB more for SD 1 at 512 pixels, 13 GiB for SDXL at
1024. Here it is worked out again a few heads at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

_AT_ONCE = 2**24  # numbers of the matrix: 64 MiB, about four times


def attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """As scaled_dot_product_attention: (B, heads, N, d), (B, heads, M, d) twice -> (B, heads, N, d)."""
    if query.device.type == "mps" and torch.is_grad_enabled():
        return Lean.apply(query, key, value)  # type: ignore[no-any-return]
    return scaled_dot_product_attention(query, key, value)


class Lean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(query, key, value)
        return scaled_dot_product_attention(query, key, value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        given = ctx.saved_tensors
        heads = [one.flatten(0, 1) for one in (*given, gradient)]
        some = max(1, _AT_ONCE // (given[0].shape[2] * given[1].shape[2]))
        parts = [_gradients(*part) for part in zip(*(one.split(some) for one in heads))]
        whole = (torch.cat(of_one) for of_one in zip(*parts))
        return tuple(one.view(plain.shape) for one, plain in zip(whole, given))


def _gradients(query: Tensor, key: Tensor, value: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of query, key and value (heads, places, d), each in its precision; worked out in full precision."""
    dtypes, scale = (query.dtype, key.dtype, value.dtype), query.shape[-1] ** -0.5
    query, key, value, gradient = (one.float() for one in (query, key, value, gradient))
    shares = (query @ key.mT * scale).softmax(-1)
    of_value = shares.mT @ gradient
    of_shares = gradient @ value.mT
    of_scores = shares * (of_shares - (gradient * (shares @ value)).sum(-1, keepdim=True)) * scale
    found = of_scores @ key, of_scores.mT @ query, of_value
    return tuple(one.to(dtype) for one, dtype in zip(found, dtypes))  # type: ignore[return-value]
