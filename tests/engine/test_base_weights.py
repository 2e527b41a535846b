"""A UNet under a LoRA in 8 bits or in the computer's memory: the same is learned, and little of it is held."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from safetensors.torch import load_file
from torch import nn

from dreambooth.core.errors import UserError
from dreambooth.core.layout import MINIATURE
from dreambooth.core.project import Project
from dreambooth.core.settings import parse
from dreambooth.engine import families
from dreambooth.engine.families import base_weights
from dreambooth.engine.families.model import whole_picture
from dreambooth.engine.training import adapters, loop
from dreambooth.engine.training.session import Session
from tests.engine import tiny
from tests.engine.runs import LORA, saved, tiny_project, train

ON = {**LORA, "batching.gradient_checkpointing": True, "batching.train_batch_size": 1}
STREAMED, INT8 = {**ON, "memory.base_weights": "streamed"}, {**ON, "memory.base_weights": "int8"}


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return tiny_project(tmp_path_factory.mktemp("base-weights"), request.param)


def test_streamed_weights_learn_the_same(made: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    load = families.load

    def loaded(*arguments: Any) -> Any:
        """Without it the file's pages are used as they lie, and the processor adds up in another order."""
        model = load(*arguments)
        for weight in model.unet.parameters():
            weight.data = weight.data.clone()
        return model

    monkeypatch.setattr(families, "load", loaded)
    plain, streamed = (load_file(saved(train(made, **changes))[-1]) for changes in (ON, STREAMED))
    assert all(torch.equal(plain[name], streamed[name]) for name in plain)


def test_weights_in_8_bits_give_nearly_the_same_gradients() -> None:
    """On the miniature, whose weights were trained."""
    loss, gradients = one_step(ON)
    small_loss, small = one_step(INT8)
    assert small_loss == pytest.approx(loss, rel=0.01)
    assert small_loss != loss
    apart = sum(float((gradients[name] - small[name]).square().sum()) for name in gradients)
    assert apart < 0.05**2 * sum(float(gradient.square().sum()) for gradient in gradients.values())


def one_step(changes: dict[str, Any]) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss on some noise, and the LoRA's gradients."""
    settings, model = parse(changes), families.load_file(MINIATURE)
    base_weights.lay(model.unet, settings.memory.base_weights, torch.device("cpu"))
    trained = adapters.prepare(model, settings)
    model.unet.enable_gradient_checkpointing()
    torch.manual_seed(0)
    x, text = torch.randn(2, 4, 16, 16), model.encode_text(["a star", "a photo of a red star"])
    sizes = torch.tensor([whole_picture(128, 128)] * 2)
    loss = (model.denoise(x, torch.tensor([500, 900]), text, sizes) - x).square().mean()
    loss.backward()
    return float(loss), {name: weight.grad for name, weight in trained.named().items() if weight.grad is not None}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_8_bits_are_off_by_half_a_step_of_their_row_at_most(dtype: torch.dtype) -> None:
    weight = torch.randn(64, 128).to(dtype) * torch.logspace(-6, 2, 64)[:, None].to(dtype)
    weight[3] = 0
    back = base_weights.Int8(weight, torch.device("cpu"), nn.Linear(1, 1)).woken(torch.device("cpu"))
    assert back.dtype == dtype
    step = weight.float().abs().amax(1, keepdim=True) / 127
    own_rounding = weight.float().abs() * (2**-8 if dtype == torch.bfloat16 else 1e-6)
    assert ((back.float() - weight.float()).abs() <= step / 2 * 1.001 + own_rounding).all()


@pytest.mark.parametrize("changes", [STREAMED, INT8], ids=["streamed", "int8"])
def test_one_block_is_awake_at_a_time(changes: dict[str, Any], made: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """And none between two steps, after the pass backward has stopped half-way through a block's forward."""
    most, forward = [0], BasicTransformerBlock.forward
    unets: list[nn.Module] = []

    def watched(block: BasicTransformerBlock, *arguments: Any, **more: Any) -> Any:
        most[0] = max([most[0], *(awake(unet) for unet in unets)])
        return forward(block, *arguments, **more)

    def look(session: Session) -> None:
        unets[:] = [session.model.unet]
        assert awake(session.model.unet) == 0

    monkeypatch.setattr(BasicTransformerBlock, "forward", watched)
    rates = loop._set_rates
    monkeypatch.setattr(loop, "_set_rates", lambda session: (look(session), rates(session)))
    train(made, **changes)
    assert most[0] == 1


def awake(unet: nn.Module) -> int:
    """How many blocks have their weights."""
    return sum(any(weight.numel() > 4096 for _, weight in base_weights.large_weights(block)) for block in blocks(unet))


def blocks(unet: nn.Module) -> Iterator[nn.Module]:
    return (module for module in unet.modules() if isinstance(module, base_weights._BLOCKS))


def test_most_of_the_weights_rest(tmp_path: Path) -> None:
    unet = families.load_file(tiny.write_original(tmp_path / "x.safetensors", "sd1")).unet
    whole = sum(weight.numel() for weight in unet.parameters())
    base_weights.lay(unet, "streamed", torch.device("cpu"))
    assert sum(weight.numel() for weight in unet.parameters()) < 0.3 * whole


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"general.method": "full"}, "changes the model's weights"),
        ({"batching.gradient_checkpointing": False}, "gradient_checkpointing on"),
        ({"lora.kind": "dora"}, "dora looks at"),
    ],
)
def test_what_does_not_go_with_it(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse({**STREAMED, **changes})
