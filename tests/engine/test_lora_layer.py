"""The LoRA layers' own sums, against peft's; how many operations they take; and in which precision a step is done."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners import lora as pefts
from torch import Tensor, nn

from dreambooth.core import settings
from dreambooth.core.models import checkpoint
from dreambooth.engine.bench import operations
from dreambooth.engine.bench.live_tensors import norms_as_on_a_card
from dreambooth.engine.layers import lora_layer
from dreambooth.engine.training import adapters, precision
from tests.engine import runs, tiny

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(12, 20), (2, 7, 12)),
    "no bias": (nn.Linear(12, 20, bias=False), (2, 7, 12)),
    "convolution": (nn.Conv2d(6, 10, 3, stride=2, padding=1), (2, 6, 9, 8)),
    "one pixel": (nn.Conv2d(6, 10, 1), (2, 6, 5, 5)),
}


def adapted(layer: nn.Module, **more: Any) -> tuple[nn.Module, nn.Module]:
    """A module with one LoRA layer of ours, and the same with peft's; B is not zero."""
    torch.manual_seed(0)
    made = nn.Sequential(copy.deepcopy(layer))
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["0"], **more)
    inject_adapter_in_model(lora_layer.replace_layers(config), made)
    for parameter in made.parameters():
        parameter.data.normal_(std=0.3)
    theirs = copy.deepcopy(made)
    theirs[0].__class__ = pefts.Linear if isinstance(layer, nn.Linear) else pefts.Conv2d
    return made, theirs


def learned(module: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """What the module says, and the gradients of what is trained and of its input."""
    x = x.clone().requires_grad_()
    torch.manual_seed(4)
    y = module(x)
    y.float().square().mean().backward()
    found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    assert x.grad is not None
    return y.detach(), {**found, "x": x.grad}


@pytest.mark.parametrize("name", LAYERS)
def test_dropout_takes_of_what_lies_between_the_two_matrices(name: str) -> None:
    layer, shape = LAYERS[name]
    made, _ = adapted(layer, lora_dropout=0.5)
    ours, x = made[0], torch.randn(shape)
    torch.manual_seed(4)
    said = ours(x) - ours.get_base_layer()(x)
    torch.manual_seed(4)
    kept = nn.functional.dropout(ours.lora_A[lora_layer.ADAPTER](x), 0.5)
    assert not torch.equal(kept, ours.lora_A[lora_layer.ADAPTER](x))
    assert torch.allclose(said, ours.lora_B[lora_layer.ADAPTER](kept) * (5 / 3), atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_says_and_learns_what_pefts_does(name: str) -> None:
    layer, shape = LAYERS[name]
    ours, theirs = (module.double() for module in adapted(layer))
    x = torch.randn(shape, dtype=torch.float64)
    (said, gradients), (expected, pefts_gradients) = learned(ours, x), learned(theirs, x)
    assert torch.allclose(said, expected, rtol=0, atol=1e-12)
    assert gradients.keys() == pefts_gradients.keys() and len(gradients) == 3
    for key, gradient in gradients.items():
        assert torch.allclose(gradient, pefts_gradients[key], rtol=0, atol=1e-12), key


def test_a_layer_takes_three_operations_there_and_five_back() -> None:
    ours, theirs = adapted(nn.Linear(12, 20))
    counts = []
    for module in (ours, theirs):
        x, there, back = torch.randn(7, 12, requires_grad=True), operations.Operations(), operations.Operations()
        with there:
            y = module(x)
        with back:
            y.backward(torch.ones_like(y))
        counts.append([there.count, back.count])
    assert counts[0] == [3, 1 + 5]  # one makes the ones
    assert counts[0] < counts[1]


def unet(kind: str) -> nn.Module:
    module: nn.Module = tiny.pipeline(kind).unet
    chosen = settings.parse({"lora.layers": "convolutions", "lora.rank": 4, "lora.alpha": 2.0})
    adapters._inject_adapters(module, chosen, "lora", adapters.LORA_LAYERS["convolutions"])
    torch.manual_seed(1)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.05)
    return module


def gradients(module: nn.Module, dtype: torch.dtype, *, autocast: bool = False, at_once: bool = True) -> Tensor:
    """All gradients of one step, in a row."""
    torch.manual_seed(2)
    given: dict[str, Any] = {
        "sample": torch.randn(2, 4, 32, 32),
        "timestep": torch.tensor([30, 800]),
        "encoder_hidden_states": torch.randn(2, 77, module.config.cross_attention_dim),
    }
    if "add_embedding" in dict(module.named_children()):
        given["added_cond_kwargs"] = {"text_embeds": torch.randn(2, 32), "time_ids": torch.full((2, 6), 64.0)}
    if not autocast:
        given |= {name: given[name].to(dtype) for name in ("sample", "encoder_hidden_states")}
    module.zero_grad()
    layers = lora_layer.adapter_layers([module]) if at_once else []
    with lora_layer.cast_at_once(layers, dtype), torch.autocast("cpu", dtype, enabled=autocast):
        module(**given).sample.float().square().mean().backward()
    assert all(layer.cast is None for layer in layers)
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.requires_grad and p.grad is not None])


def in_half(module: nn.Module) -> nn.Module:
    """The model in bf16 and its LoRA in full precision, as it is trained."""
    for parameter in module.parameters():
        parameter.data = parameter.data if parameter.requires_grad else parameter.data.bfloat16()
    return module


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_step_in_bf16_is_as_near_to_full_precision_as_autocast(kind: str) -> None:
    module = unet(kind)
    exact = gradients(module, torch.float32)
    half = in_half(module)
    ours = gradients(half, torch.bfloat16)
    undo = norms_as_on_a_card()
    try:
        usual = gradients(half, torch.bfloat16, autocast=True)
    finally:
        undo()
    assert ours.dtype == torch.float32
    off, usually_off = ((one - exact).norm() / exact.norm() for one in (ours, usual))
    assert 0 < off < 1.2 * usually_off
    assert usually_off < 0.1


def test_casting_at_once_changes_no_bit() -> None:
    half = in_half(unet("sd1"))
    at_once, one_by_one = (gradients(half, torch.bfloat16, at_once=yes) for yes in (True, False))
    assert torch.equal(at_once, one_by_one)
    half.enable_gradient_checkpointing()  # type: ignore[operator]
    half.train()
    assert torch.equal(gradients(half, torch.bfloat16), at_once)


def test_nothing_is_cast_without_need() -> None:
    module = unet("sd1")
    with lora_layer.cast_at_once(lora_layer.adapter_layers([module]), torch.float32):
        assert all(layer.cast is None for layer in lora_layer.adapter_layers([module]))


@pytest.mark.parametrize(
    ("flat", "plain"),
    [
        ({}, torch.bfloat16),
        ({"lora.kind": "dora"}, torch.bfloat16),
        ({"lora.kind": "loha"}, torch.bfloat16),
        ({"memory.attention": "sliced"}, None),
        ({"general.method": "full"}, None),
        ({"general.method": "full", "memory.bf16_weights": True}, torch.bfloat16),
        ({"tuning.mixed_precision": "no"}, torch.float32),
        ({"tuning.mixed_precision": "no", "lora.kind": "loha"}, torch.float32),
        ({"tuning.mixed_precision": "no", "general.method": "full"}, torch.float32),
    ],
)
def test_autocast_is_left_out_where_all_lies_in_one_precision(flat: dict[str, Any], plain: torch.dtype | None) -> None:
    chosen = settings.parse({"tuning.mixed_precision": "bf16", **flat})
    AcceleratorState._reset_state(reset_partial_state=True)
    made: Accelerator = precision.of(chosen)
    assert precision.plain_dtype(made, chosen) == plain


def test_the_layers_of_a_start_file_are_what_is_trained(tmp_path: Path) -> None:
    """Not what the setting says, which they overrule."""
    made, mixed = runs.tiny_project(tmp_path), {**runs.LORA, "tuning.mixed_precision": "bf16"}
    first = runs.saved(runs.train(made, **mixed, **{"lora.kind": "loha"}))[-1]
    goes_on = {**mixed, "lora.start_file": str(first)}
    said, other = (runs.output(runs.train(made, **goes_on, **{"lora.kind": kind})) for kind in ("loha", "lora"))
    assert runs.same(said, other)


def test_what_began_as_another_lora_says_its_own_rank(tmp_path: Path) -> None:
    made, small = runs.tiny_project(tmp_path), {**runs.LORA, "lora.alpha": 1.5, "lora.layers": "convolutions"}
    first = runs.saved(runs.train(made, **small, **{"lora.conv_rank": 3}))[-1]
    other = {"lora.rank": 16, "lora.alpha": 8, "lora.conv_rank": 4, "lora.start_file": str(first)}
    about = checkpoint.read_header(runs.saved(runs.train(made, **{**small, **other}))[-1]).metadata
    assert (about["ss_network_dim"], about["ss_network_alpha"]) == ("2", "1.5")
    assert "conv_dim" not in about.get("ss_network_args", "")


def test_a_step_asks_for_less_than_half_of_what_is_usual() -> None:
    usual, ours = (operations.count("sd1", "lora", usual=usual) for usual in (True, False))
    assert all(count > 1000 for count in (*usual, *ours))
    assert sum(ours) < 0.5 * sum(usual)
