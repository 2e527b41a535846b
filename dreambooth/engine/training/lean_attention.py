"""Attention that keeps nothing of its largest matrix for the backward pass, where PyTorch's own would: on an Apple GPU,
and on cards of AMD that PyTorch has no fused kernel for.

A card's kernels work softmax(Q K^T / sqrt(d)), which has a number for each two places of a picture, out again in the
backward pass, in parts (Dao et al. 2022, arXiv 2205.14135, section 3.1). PyTorch has none for an Apple GPU that can be
trained through and keeps the matrix of every layer instead: 3.7 GiB more for SD 1 at 512 pixels, 13 GiB for SDXL at
1024. Here it is worked out again a few heads at a time.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

_AT_ONCE = 2**24  # numbers of the matrix: 64 MiB, about four times


def attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """As scaled_dot_product_attention: (B, heads, N, d), (B, heads, M, d) twice -> (B, heads, N, d)."""
    if torch.is_grad_enabled() and _keeps_its_matrix(query.device, query.dtype):
        return Lean.apply(query, key, value)  # type: ignore[no-any-return]
    return scaled_dot_product_attention(query, key, value)


def _keeps_its_matrix(device: torch.device, dtype: torch.dtype) -> bool:
    if device.type == "cuda":
        return torch.version.hip is not None and not _has_fused(device, dtype)
    return device.type == "mps"


@functools.cache
def _has_fused(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether PyTorch has a kernel that can be trained through, found by trying; known before any step is traced."""
    query = torch.randn(1, 1, 64, 64, device=device, dtype=dtype, requires_grad=True)
    try:
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):
            scaled_dot_product_attention(query, query, query).sum().backward()
    except RuntimeError:
        return False
    return True


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
