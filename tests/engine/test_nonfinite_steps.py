"""A step that is left out on the device: what its gradients come to, and in how many operations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from dreambooth.engine.bench import operations
from dreambooth.engine.training import nonfinite_steps

ODD = [float("nan"), float("inf"), -float("inf"), -0.0, 1e-38, 3.5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("bad", [False, True])
def test_gradients_are_zero_or_to_the_last_bit_what_they_were(dtype: torch.dtype, bad: bool) -> None:
    weights = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in ((6,), (6, 2), ())]
    weights[0].grad = torch.tensor(ODD, dtype=dtype)
    weights[1].grad = torch.tensor([ODD, ODD], dtype=dtype).T  # not contiguous
    before = [weight.grad.clone() for weight in weights[:2]]  # type: ignore[union-attr]
    with nonfinite_steps.skipped_if(torch.optim.RMSprop(weights), torch.tensor(bad)):
        for weight, was in zip(weights, before):
            wanted = torch.zeros_like(was) if bad else was
            assert weight.grad is not None and weight.grad.stride() == was.stride()
            as_bits = nonfinite_steps._INTEGERS[was.element_size()]
            assert torch.equal(weight.grad.view(as_bits), wanted.view(as_bits))


def test_many_gradients_are_cleared_by_one_operation() -> None:
    weights = [nn.Parameter(torch.zeros(3)) for _ in range(50)]
    for weight in weights:
        weight.grad = torch.full((3,), torch.nan)
    with (
        operations.Operations() as counted,
        nonfinite_steps.skipped_if(torch.optim.RMSprop(weights), torch.tensor(True)),
    ):
        pass
    assert not torch.stack([weight.grad for weight in weights]).any()  # type: ignore[misc]
    assert counted.count < 10


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_value_that_is_no_number_is_found_among_all(dtype: torch.dtype, bad: float) -> None:
    largest = torch.finfo(dtype).max
    tensors = [torch.full((3, 2), largest, dtype=dtype), torch.ones(4), torch.zeros(0), torch.ones(2, dtype=torch.int8)]
    assert nonfinite_steps.all_finite(tensors)
    tensors[0][1, 1] = bad
    assert not nonfinite_steps.all_finite(tensors)
