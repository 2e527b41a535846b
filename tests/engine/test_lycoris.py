"""LoHa and LoKr layers' own sums, against peft's; and how many operations they take."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, PeftConfig, inject_adapter_in_model
from torch import Tensor, nn

from dreambooth.core import settings
from dreambooth.engine.bench import operations
from dreambooth.engine.bench.live_tensors import norms_as_on_a_card
from dreambooth.engine.layers import disabled_adapters, lora_layer, lycoris
from dreambooth.engine.training import adapters
from tests.engine import tiny
from tests.engine.test_lora_layer import LAYERS, gradients, in_half, learned

CONFIGS: dict[str, PeftConfig] = {
    "loha": LoHaConfig(r=3, alpha=6, target_modules=["0"]),
    "loha, kernel apart": LoHaConfig(r=3, alpha=6, target_modules=["0"], use_effective_conv2d=True),
    "lokr": LoKrConfig(r=1, alpha=5, target_modules=["0"]),  # whose second factor is a product of two
    "lokr, whole": LoKrConfig(r=9, alpha=5, target_modules=["0"]),
    "lokr, both split": LoKrConfig(r=1, alpha=5, target_modules=["0"], decompose_both=True),
    "lokr, kernel apart": LoKrConfig(r=1, alpha=5, target_modules=["0"], use_effective_conv2d=True),
}


def adapted(layer: nn.Module, config: PeftConfig) -> tuple[nn.Module, nn.Module]:
    """A module with one layer of ours, and the same with peft's; nothing of what they learn is zero."""
    torch.manual_seed(0)
    theirs = nn.Sequential(copy.deepcopy(layer))
    inject_adapter_in_model(config, theirs)
    for parameter in theirs.parameters():
        parameter.data.normal_(std=0.3)
    ours = copy.deepcopy(theirs)
    lycoris.replace_class(ours[0])
    assert type(ours[0]).__bases__[-1] is type(theirs[0])
    return ours, theirs


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_says_and_learns_what_pefts_does(name: str, kind: str) -> None:
    layer, shape = LAYERS[name]
    ours, theirs = (module.double() for module in adapted(layer, CONFIGS[kind]))
    x = torch.randn(shape, dtype=torch.float64)
    (said, gradients), (expected, pefts_gradients) = learned(ours, x), learned(theirs, x)
    assert torch.allclose(said, expected, rtol=0, atol=1e-12)
    assert gradients.keys() == pefts_gradients.keys() and len(gradients) >= 3
    for key, gradient in gradients.items():
        assert torch.allclose(gradient, pefts_gradients[key], rtol=0, atol=1e-12), key


@pytest.mark.parametrize("kind", ["loha", "lokr"])
@pytest.mark.parametrize("name", LAYERS)
def test_at_rest_it_is_the_plain_layer(name: str, kind: str) -> None:
    layer, shape = LAYERS[name]
    ours, theirs = adapted(layer, CONFIGS[kind])
    x = torch.randn(shape)
    plain = theirs[0].get_base_layer()(x)  # type: ignore[operator]
    assert not torch.allclose(ours(x), plain, atol=1e-3)
    with disabled_adapters.disabled(disabled_adapters.adapters([ours])):
        assert torch.equal(ours(x), plain)


@pytest.mark.parametrize(
    ("kind", "there", "back"), [("loha", 5, 12), ("lokr", 4, 10), ("lokr, whole", 3, 8), ("lokr, both split", 5, 12)]
)
def test_how_many_operations_a_layer_takes(kind: str, there: int, back: int) -> None:
    counts = []
    for module in adapted(nn.Linear(12, 20), CONFIGS[kind]):
        x, forward, backward = torch.randn(7, 12, requires_grad=True), operations.Operations(), operations.Operations()
        with forward:
            y = module(x)
        with backward:
            y.backward(torch.ones_like(y))
        counts.append([forward.count, backward.count])
    assert counts[0] == [there, 1 + back]  # one makes the ones
    assert counts[0] < counts[1]


def unet(kind: str) -> nn.Module:
    module: nn.Module = tiny.pipeline("sd1").unet
    chosen = settings.parse({"lora.kind": kind, "lora.rank": 4, "lora.alpha": 2.0})
    adapters._inject_adapters(module, chosen, kind, adapters.LORA_LAYERS["convolutions"])
    torch.manual_seed(1)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.2)
    return module


def with_pefts(module: nn.Module) -> nn.Module:
    made = copy.deepcopy(module)
    for layer in lora_layer.adapter_layers([made]):
        layer.__class__ = type(layer).__bases__[-1]
    return made.eval()


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_a_step_in_bf16_is_as_near_to_full_precision_as_pefts_with_autocast(kind: str) -> None:
    module = unet(kind)
    layers = lora_layer.adapter_layers([module])
    assert len(layers) > 20 and any(isinstance(layer, (lycoris.LohaConv2d, lycoris.LokrConv2d)) for layer in layers)
    exact = gradients(with_pefts(module), torch.float32)
    assert torch.allclose(gradients(module, torch.float32), exact, rtol=1e-3, atol=1e-6 * exact.abs().max().item())
    half = in_half(module)
    ours = gradients(half, torch.bfloat16)
    undo = norms_as_on_a_card()
    try:
        usual = gradients(with_pefts(half), torch.bfloat16, autocast=True)
    finally:
        undo()
    off, usually_off = ((one - exact).norm() / exact.norm() for one in (ours, usual))
    assert 0 < off < 1.5 * usually_off  # what is between a LoKr's factors is narrowed, too
    assert usually_off < 0.15


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_casting_at_once_and_checkpointing_change_no_bit(kind: str) -> None:
    half = in_half(unet(kind))
    at_once, one_by_one = (gradients(half, torch.bfloat16, at_once=yes) for yes in (True, False))
    assert torch.equal(at_once, one_by_one)
    half.enable_gradient_checkpointing()  # type: ignore[operator]
    half.train()
    assert torch.equal(gradients(half, torch.bfloat16), at_once)


@pytest.mark.parametrize("kind", ["loha", "lokr", "lokr, whole"])
@pytest.mark.parametrize("name", ["linear", "one pixel"])
def test_an_input_that_lies_in_another_order_is_the_same(name: str, kind: str) -> None:
    """As SDXL's projections get it at a batch of one."""
    layer, shape = LAYERS[name]
    x = torch.randn(1, *shape[1:])
    last = x.transpose(1, 2).contiguous().transpose(1, 2) if name == "linear" else None
    other = x.to(memory_format=torch.channels_last) if last is None else last
    assert torch.equal(x, other) and x.stride() != other.stride()
    ours, _ = adapted(layer, CONFIGS[kind])
    (said, found), (same, others) = learned(ours, x), learned(copy.deepcopy(ours), other)
    torch.testing.assert_close(said, same)
    for key, value in others.items():
        torch.testing.assert_close(value, found[key])


def test_other_layers_stay_as_they_are() -> None:
    layer: Any = nn.Linear(2, 3)
    lycoris.replace_class(layer)
    assert type(layer) is nn.Linear


def test_a_gradient_that_nobody_asks_of_the_input_is_not_worked_out() -> None:
    for kind in ("loha", "lokr"):
        ours, theirs = adapted(nn.Linear(12, 20), CONFIGS[kind])
        x: Tensor = torch.randn(7, 12)
        found = []
        for module in (ours, theirs):
            module(x).square().sum().backward()
            found.append([p.grad for p in module.parameters() if p.grad is not None])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other)
