"""A UNet in 8 or 4 bits or in the computer's memory: the same is learned, and little of it is held."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers.models.attention import BasicTransformerBlock
from safetensors.torch import load_file
from torch import nn

from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import MINIATURE
from dreambooth.core.memory import footprint, footprint_table
from dreambooth.core.project import Project
from dreambooth.core.settings import carried_over, on_resume, parse
from dreambooth.engine import families, hardware, worker
from dreambooth.engine.bench import streaming
from dreambooth.engine.bench.footprint import Point
from dreambooth.engine.families import unet_weights, weight_prefetch
from dreambooth.engine.families.model import whole_picture
from dreambooth.engine.run.hooks import RunHooks
from dreambooth.engine.training import adapters, loop
from dreambooth.engine.training.session import Session
from tests.engine import tiny
from tests.engine.runs import LORA, new_run, output, same, saved, tiny_project, train
from tests.footprints import family_needs

ON = {**LORA, "batching.gradient_checkpointing": True, "batching.train_batch_size": 1}
FULL = {
    "general.method": "full",
    "batching.gradient_checkpointing": True,
    "memory.step_in_backward": True,
    "batching.train_batch_size": 1,
}
STREAMED, INT8, NF4 = ({**ON, "memory.unet_weights": lying} for lying in ("streamed", "int8", "nf4"))


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return tiny_project(tmp_path_factory.mktemp("base-weights"), request.param)


@pytest.fixture
def _copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights in memory of their own. A file's pages are used as they lie, where the CPU adds up in another
    order."""
    load = families.load

    def loaded(*arguments: Any) -> Any:
        model = load(*arguments)
        for weight in model.unet.parameters():
            weight.data = weight.data.clone()
        return model

    monkeypatch.setattr(families, "load", loaded)


@pytest.mark.usefixtures("_copied")
@pytest.mark.parametrize("layers", ["transformer", "convolutions"])
def test_streamed_weights_learn_the_same(made: Project, layers: str) -> None:
    kinds = ({**changes, "lora.layers": layers} for changes in (ON, STREAMED))
    plain, streamed = (load_file(saved(train(made, **changes))[-1]) for changes in kinds)
    assert all(torch.equal(plain[name], streamed[name]) for name in plain)


TRAINED_STREAMED: dict[str, dict[str, Any]] = {
    "sd1, 8-bit states": {"optimizer.name": "adamw_8bit", "tuning.use_ema": True},
    "sd1, bf16": {"optimizer.name": "came", "memory.bf16_weights": True, "tuning.mixed_precision": "bf16"},
    "sdxl, text": {"tuning.text_encoder_ratio": 1.0, "optimizer.max_grad_norm": 0.01},
    "sdxl, some layers": {"tuning.unet_layers": "attention", "optimizer.name": "adafactor"},
}


@pytest.mark.usefixtures("_copied")
@pytest.mark.parametrize("kind", TRAINED_STREAMED)
def test_streamed_weights_are_changed_as_whole_ones(kind: str, tmp_path: Path) -> None:
    made = tiny_project(tmp_path, kind.split(",")[0])
    changes = {**FULL, **TRAINED_STREAMED[kind], "intervals.max_train_steps": 3}
    plain = output(train(made, **changes))
    assert any(not torch.equal(plain[name], start) for name, start in load_file(made.source).items())
    assert same(plain, output(train(made, **changes, **{"memory.unet_weights": "streamed"})))


@pytest.mark.parametrize(("changes", "off"), [(INT8, 0.03), (NF4, 0.35)], ids=["int8", "nf4"])
def test_weights_in_few_bits_give_nearly_the_same_gradients(changes: dict[str, Any], off: float) -> None:
    """On the miniature, whose weights were trained."""
    loss, gradients = one_step(ON)
    small_loss, small = one_step(changes)
    assert small_loss == pytest.approx(loss, rel=0.01 if off < 0.1 else 0.1)
    assert small_loss != loss
    apart = sum(float((gradients[name] - small[name]).square().sum()) for name in gradients)
    whole = sum(float(gradient.square().sum()) for gradient in gradients.values())
    assert apart < off**2 * whole


def test_a_lora_on_4_bits_is_a_lora_like_any_other(tmp_path: Path) -> None:
    made = tiny_project(tmp_path)
    plain, small = (output(train(made, **changes, **{"lora.layers": "convolutions"})) for changes in (ON, NF4))
    assert {name: (t.shape, t.dtype) for name, t in plain.items()} == {n: (t.shape, t.dtype) for n, t in small.items()}
    assert not same(plain, small)


def test_what_does_not_work_here_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert unet_weights.fault("nf4", torch.device("cpu")) == ""
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"memory\.unet_weights: nf4 does not work here .*; choose int8"):
        unet_weights.check("nf4", torch.device("cpu"))


def one_step(changes: dict[str, Any]) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss on some noise, and the LoRA's gradients."""
    settings, model = parse(changes), families.load_file(MINIATURE)
    unet_weights.store_weights(model.unet, settings.memory.unet_weights, torch.device("cpu"))
    trained = adapters.make_trainable(model, settings)
    model.unet.enable_gradient_checkpointing()
    torch.manual_seed(0)
    x, text = torch.randn(2, 4, 16, 16), model.encode_text(["a star", "a photo of a red star"])
    sizes = torch.tensor([whole_picture(128, 128)] * 2)
    loss = (model.denoise(x, torch.tensor([500, 900]), text, sizes) - x).square().mean()
    loss.backward()
    return float(loss), {name: weight.grad for name, weight in trained.named().items() if weight.grad is not None}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_4_bits_are_off_by_a_sixth_of_their_64_at_most(dtype: torch.dtype) -> None:
    """The widest gap between two of the sixteen values of nf4 is 0.3 of the greatest."""
    weight = torch.randn(64, 32, 3, 3).to(dtype)
    layer = nn.Linear(1, 1)
    back = unet_weights.NF4Weight(weight, torch.device("cpu"), layer).restore(torch.device("cpu"))
    assert (back.dtype, back.shape) == (dtype, weight.shape)
    most = weight.float().reshape(-1, 64).abs().amax(1, keepdim=True)
    off = (back.float() - weight.float()).reshape(-1, 64).abs()
    assert (off <= most * 0.16).all()
    held = sum(buffer.numel() * buffer.element_size() for buffer in layer.buffers())
    assert held == weight.numel() * (0.5 + 4 / 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_8_bits_are_off_by_half_a_step_of_their_row_at_most(dtype: torch.dtype) -> None:
    weight = torch.randn(64, 128).to(dtype) * torch.logspace(-6, 2, 64)[:, None].to(dtype)
    weight[3] = 0
    back = unet_weights.Int8Weight(weight, torch.device("cpu"), nn.Linear(1, 1)).restore(torch.device("cpu"))
    assert back.dtype == dtype
    step = weight.float().abs().amax(1, keepdim=True) / 127
    own_rounding = weight.float().abs() * (2**-8 if dtype == torch.bfloat16 else 1e-6)
    assert ((back.float() - weight.float()).abs() <= step / 2 * 1.001 + own_rounding).all()


@pytest.mark.parametrize(
    "changes", [STREAMED, NF4, {**FULL, "memory.unet_weights": "streamed"}], ids=["streamed", "nf4", "trained"]
)
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
    train(made, **changes, **{"intervals.max_train_steps": 2})
    assert most[0] == 1


def awake(unet: nn.Module) -> int:
    """How many blocks have their weights."""
    return sum(any(weight.numel() > 4096 for _, weight in unet_weights.large_weights(block)) for block in blocks(unet))


def blocks(unet: nn.Module) -> Iterator[nn.Module]:
    return (module for module in unet.modules() if isinstance(module, unet_weights.BLOCKS))


def test_most_of_the_weights_rest(tmp_path: Path) -> None:
    unet = families.load_file(tiny.write_original(tmp_path / "x.safetensors", "sd1")).unet
    whole = sum(weight.numel() for weight in unet.parameters())
    unet_weights.store_weights(unet, "streamed", torch.device("cpu"))
    assert sum(weight.numel() for weight in unet.parameters()) < 0.3 * whole


@pytest.mark.usefixtures("_copied")
def test_a_run_goes_on_with_weights_that_lie_elsewhere(made: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has saved is the same, so that streaming can be turned on and off on the way."""
    last = {"intervals.max_train_steps": 3}
    job = new_run(made, **FULL, **last)
    with monkeypatch.context() as patch:
        patch.setattr(RunHooks, "requests", lambda hooks: {"pause"} if hooks.session.step == 1 else set())
        assert worker.run(job) == "paused"
    job.change(on_resume.changes(job.settings(), {"memory.unet_weights": "streamed"}))
    AcceleratorState._reset_state(reset_partial_state=True)
    assert worker.run(job) == "done"
    assert same(output(job), output(train(made, **FULL, **last)))


def test_the_setting_is_known_by_its_old_name() -> None:
    assert carried_over({"memory.base_weights": "int8"}) == {"memory.unet_weights": "int8"}


@pytest.mark.large
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_what_streaming_holds_is_what_the_planner_says(optimizer: str) -> None:
    """SD 1 at full size, counted; said is a little more, as what is largest is taken to come together."""
    flat = {**FULL, "memory.unet_weights": "streamed", "memory.bf16_weights": True, "previews.count": 0}
    settings = parse({**flat, "optimizer.name": optimizer})
    counted = streaming.count(settings, "sd1", Point(1, 64))
    told = footprint.step_bytes(settings, footprint_table.full_size("sd1"), "sd1", 512**2)
    assert counted * 0.97 < told < counted + 0.1 * family_needs(settings, "sd1").total


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({**FULL, "memory.unet_weights": "int8"}, "changes the model's weights"),
        ({**FULL, "memory.unet_weights": "nf4"}, "changes the model's weights"),
        ({**FULL, "memory.step_in_backward": False}, "step_in_backward on"),
        ({**FULL, "optimizer.name": "paged_adamw_8bit"}, "set it to adamw_8bit"),
        ({"batching.gradient_checkpointing": False}, "gradient_checkpointing on"),
        ({"lora.kind": "dora"}, "dora looks at"),
    ],
)
def test_what_does_not_go_with_it(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse({**STREAMED, **changes})


def test_without_enough_to_be_pinned_it_is_streamed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The card then waits for what it cannot fetch by itself, and that is said once."""
    said = list[str]()

    def refuse(tensor: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.Tensor, "pin_memory", refuse)
    monkeypatch.setattr(hardware, "_PINS", [True])
    monkeypatch.setattr(weight_prefetch, "streams", lambda device: None)
    unet = families.load_file(MINIATURE).unet
    unet_weights.store_weights(unet, "streamed", torch.device("cuda"), lambda problem: said.append(problem.sentence))
    assert len(said) == 1 and "(RAM)" in said[0]
    assert len(list(unet_weights.streamed(unet))) > 10
