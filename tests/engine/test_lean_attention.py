"""Attention that works its matrix out again: the gradients of PyTorch's own, and nothing large that is kept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from dreambooth.engine.training import lean_attention
from dreambooth.engine.training.lean_attention import Lean, attended
from tests.engine.simulated_apple import SimulatedAppleGpu
from tests.engine.simulated_card import simulated_card


def given(dtype: torch.dtype, places: int, others: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 3, places, 8), (2, 3, others, 8), (2, 3, others, 8)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("at_once", [1, 2 * 20 * 20, 2**24], ids=["a head", "two heads", "all"])
@pytest.mark.parametrize(("places", "others"), [(20, 20), (20, 7)], ids=["itself", "a text"])
def test_gradients_are_those_of_pytorch(
    places: int, others: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lean_attention, "_AT_ONCE", at_once)
    found = {}
    for name, attend in {"lean": Lean.apply, "torch": scaled_dot_product_attention}.items():
        inputs = given(torch.float32, places, others)
        out = attend(*inputs)
        (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
        found[name] = [out, *(one.grad for one in inputs)]
    for one, other in zip(found["lean"], found["torch"]):
        assert (one - other).abs().max() < 1e-5 * other.abs().max()


def test_in_half_precision_it_is_as_exact_as_pytorch() -> None:
    """Both are held against the same sums in full precision."""
    off = {}
    exact = given(torch.bfloat16, 20, 20)
    wide = [one.detach().float().requires_grad_() for one in exact]
    scaled_dot_product_attention(*wide).square().sum().backward()
    for name, attend in {"lean": Lean.apply, "torch": scaled_dot_product_attention}.items():
        inputs = given(torch.bfloat16, 20, 20)
        attend(*inputs).square().sum().backward()
        assert all(one.grad is not None and one.grad.dtype == torch.bfloat16 for one in inputs)
        off[name] = max(float((a.grad.float() - b.grad).norm() / b.grad.norm()) for a, b in zip(inputs, wide))
    assert off["lean"] < max(1.2 * off["torch"], 0.01)


def test_nothing_large_is_kept_on_an_apple_gpu() -> None:
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with simulated_card(SimulatedAppleGpu), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        inputs = [one.detach().to("mps").requires_grad_() for one in given(torch.float32, 64, 64)]
        attended(*inputs).sum().backward()
        assert all(one.grad is not None and one.grad.device.type == "mps" for one in inputs)
    assert len(kept) == 3 and max(one.numel() for one in kept) == 2 * 3 * 64 * 8


def test_elsewhere_it_is_pytorchs_own() -> None:
    inputs = given(torch.float32, 20, 20)
    assert "Lean" not in type(attended(*inputs).grad_fn).__name__


@pytest.mark.parametrize("has_kernels", [True, False])
def test_a_card_of_amd_without_a_fused_kernel_keeps_nothing_large(
    has_kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[object] = []

    @contextlib.contextmanager
    def only(kinds: object) -> Iterator[None]:
        tried.append(kinds)
        if not has_kernels:
            raise RuntimeError("No available kernel. Aborting execution.")
        yield

    monkeypatch.setattr(torch.version, "hip", "7.0")
    monkeypatch.setattr(lean_attention, "sdpa_kernel", only)
    lean_attention._has_fused.cache_clear()
    with simulated_card():
        for _ in range(2):
            inputs = [one.detach().to("cuda").requires_grad_() for one in given(torch.float32, 20, 20)]
            assert ("Lean" in type(attended(*inputs).grad_fn).__name__) == (not has_kernels)
    assert len(tried) == 1, "it is tried once"
    lean_attention._has_fused.cache_clear()
