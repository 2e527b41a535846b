"""What is trained: which weights, and what each kind of LoRA does, in training, in its file and back.

The formulas of the WebUIs' readers are written out here once more, on the tensors of the file alone.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lycoris_utils import LycorisLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dreambooth.core import settings
from dreambooth.core.errors import UserError
from dreambooth.core.models import checkpoint
from dreambooth.engine import families
from dreambooth.engine.bench.live_tensors import Live
from dreambooth.engine.checkpoints import lora, lora_header, lora_start
from dreambooth.engine.checkpoints.source import open_source
from dreambooth.engine.checkpoints.write import write_tensors
from dreambooth.engine.families.model import Model
from dreambooth.engine.layers.oft import OftLayer
from dreambooth.engine.training import adapters
from tests.engine.batches import losses, session

KINDS = ("lora", "dora", "loha", "lokr", "oft")
CHANGES: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {},
    "loha": {},
    "lokr": {"lora.rank": 2, "lora.lokr_factor": 4},  # at rank 3 most second factors would be whole
    "oft": {"lora.rank": 8},
    # As evenly split as can be, where many layers have two whole factors and with them no rank.
    "lokr in halves": {"lora.rank": 3, "lora.kind": "lokr"},
    "dora of two ranks": {"lora.kind": "dora", "lora.conv_rank": 2, "lora.conv_alpha": 1.0},
    "loha of two ranks": {"lora.kind": "loha", "lora.conv_rank": 2, "lora.conv_alpha": 1.0},
}


def chosen(kind: str, **more: Any) -> settings.Settings:
    base = {"lora.kind": kind, "lora.rank": 3, "lora.alpha": 6.0, "lora.layers": "convolutions"}
    return settings.parse({**base, "tuning.text_encoder_ratio": 1.0, **CHANGES[kind], **more})


@pytest.fixture(scope="module", params=CHANGES)
def trained(request: pytest.FixtureRequest, base: Path) -> Model:
    """The model with adapters of a kind that are not zero."""
    model = families.load_file(base)
    named = adapters.make_trainable(model, chosen(request.param)).named()
    torch.manual_seed(3)
    for name, parameter in named.items():
        noise = torch.randn_like(parameter)
        parameter.data = parameter * (1 + 0.1 * noise) if "dora" in name else 0.2 * noise
    return model


@pytest.fixture
def file(trained: Model, family: str, tmp_path: Path) -> Path:
    path = tmp_path / "taught.safetensors"
    write_tensors(path, lora.lora_tensors(trained.parts, family, half=False), {})
    return path


def adapted(model: Model) -> dict[str, Any]:
    """peft's layers by part and path."""
    return {
        f"{part}/{path}": layer
        for part, module in model.parts.items()
        for path, layer in module.named_modules()
        if isinstance(layer, (LoraLayer, LycorisLayer, OftLayer))
    }


def webui_change(found: dict[str, Tensor], weight: Tensor) -> Tensor:
    """What the WebUIs' readers make of a layer's tensors, at weight 1, in float64."""
    of = {name: tensor.double() for name, tensor in found.items()}
    dim = None
    if "oft_blocks" in of:
        blocks, whole = of["oft_blocks"], weight.double()
        skew, one = blocks - blocks.transpose(1, 2), torch.eye(blocks.shape[1], dtype=torch.float64)
        length = skew.norm()  # SD.Next reads no file without alpha, reForge compares it with 0
        skew = skew * ((length.clamp(max=of["alpha"] * whole.shape[0]) + 1e-8) / (length + 1e-8))
        rotation = torch.block_diag(*((one + each) @ (one - each).inverse() for each in skew))
        return (rotation.T @ whole.flatten(1)).reshape(whole.shape) - whole
    if "lora_up.weight" in of:
        dim = of["lora_down.weight"].shape[0]
        change = of["lora_up.weight"].flatten(1) @ of["lora_down.weight"].flatten(1)
    elif "hada_w1_a" in of:
        dim = of["hada_w1_b"].shape[0]
        change = (of["hada_w1_a"] @ of["hada_w1_b"]) * (of["hada_w2_a"] @ of["hada_w2_b"])
    else:
        second = of.get("lokr_w2")
        if second is None:
            dim = of["lokr_w2_b"].shape[0]
            second = of["lokr_w2_a"] @ of["lokr_w2_b"]
        first = of["lokr_w1"]
        change = torch.kron(first[:, :, None, None] if second.dim() == 4 else first, second)
    change = change.reshape(weight.shape) * (of["alpha"].item() / dim if dim else 1.0)
    if "dora_scale" not in of:
        return change
    merged = weight.double() + change
    lengths = merged.transpose(0, 1).reshape(merged.shape[1], -1).norm(dim=1)
    return merged * (of["dora_scale"] / lengths.reshape(1, -1, *[1] * (merged.dim() - 2))) - weight.double()


def test_a_webui_makes_of_the_file_what_the_layer_computed(trained: Model, family: str, base: Path, file: Path) -> None:
    """The predecessor trained at scale 1 and wrote an alpha by which WebUIs drew at a fifth of it."""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in load_file(file).items():
        key, _, ending = name.partition(".")
        layers.setdefault(key, {})[ending] = tensor
    torch.manual_seed(1)
    found = adapted(trained)
    assert len(found) == len(layers) > 50
    keys = lora_header.keys(open_source(base).tensors, family)
    for path, layer in found.items():
        part, _, own = path.partition("/")
        own = own.removeprefix("text_model.") if part != "unet" else own
        plain = layer.get_base_layer()
        changed = copy.deepcopy(plain)
        key = keys[f"{part}/{own}.weight"]
        changed.weight.data = (plain.weight + webui_change(layers[key], plain.weight)).float()
        wide = isinstance(plain, nn.Linear)
        x = torch.randn(2, 5, plain.in_features) if wide else torch.randn(2, plain.in_channels, 6, 6)
        with torch.no_grad():
            expected, ours, before = changed(x), layer(x), plain(x)
        assert (ours - before).abs().max() > 1e-3
        assert torch.allclose(ours, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_pefts_merged_weight_is_what_the_file_says(trained: Model, family: str, base: Path, file: Path) -> None:
    """Against peft's own merging, for the kinds that are peft's: DoRA's lengths are of columns, which peft lacks."""
    layers = lora.by_module(lora.read(file, open_source(base).tensors, family), trained.parts)
    for path, layer in adapted(trained).items():
        part, _, own = path.partition("/")
        read = layers[part][own]
        weight = layer.get_base_layer().weight
        if read.magnitude is None:
            assert torch.allclose(read.change(weight), layer.get_delta_weight("default"), atol=1e-5)
        else:
            plain = replace(read, magnitude=None).change(weight)
            assert torch.allclose(plain, layer.get_delta_weight("default"), atol=1e-5)


def test_merging_the_file_draws_what_training_saw(trained: Model, family: str, base: Path, file: Path) -> None:
    model, source = families.load_file(base), open_source(base)
    lora.add(file, lora.read(file, source.tensors, family), source, model.parts, 1.0)
    torch.manual_seed(2)
    x, t, sizes = torch.randn(2, 4, 8, 8), torch.tensor([10, 700]), torch.tensor([[64, 64, 0, 0, 64, 64]] * 2)
    with torch.no_grad():
        ours, trains, plain = (
            one.denoise(x, t, one.encode_text(["a star", "a cat"]), sizes)
            for one in (model, trained, families.load_file(base))
        )
    assert torch.allclose(ours, trains, atol=1e-3 * trains.abs().max().item())
    assert (ours - plain).abs().max() > 10 * (ours - trains).abs().max()


def test_going_on_starts_where_the_file_ends(trained: Model, family: str, base: Path, file: Path) -> None:
    model = families.load_file(base)
    start = lora.by_module(lora.read(file, open_source(base).tensors, family), model.parts)
    other = settings.parse({"lora.rank": 16, "tuning.text_encoder_ratio": 1.0})  # the kind is the file's
    assert all(p.requires_grad for p in adapters.make_trainable(model, other, start).named().values())
    again = lora.lora_tensors(model.parts, family, half=False)
    before = load_file(file)
    assert again.keys() == before.keys()
    assert all(torch.equal(before[name], again[name]) for name in before)
    with torch.no_grad():
        x, t, sizes = torch.ones(1, 4, 8, 8), torch.tensor([300]), torch.tensor([[64, 64, 0, 0, 64, 64]])
        drawn = [one.denoise(x, t, one.encode_text(["a star"]), sizes) for one in (model, trained)]
    assert torch.allclose(*drawn, atol=1e-5)


def test_the_file_is_known_for_a_lora(file: Path, trained: Model) -> None:
    assert checkpoint.describe(checkpoint.read_header(file)).kind == "lora"


@pytest.mark.parametrize("kind", KINDS)
def test_convolutions_may_have_a_rank_and_an_alpha_of_their_own(kind: str, base: Path, family: str) -> None:
    """Those that see more than a pixel, as kohya and LyCORIS have it."""
    own = {"lora.rank": 4, "lora.alpha": 8.0, "lora.conv_rank": 2, "lora.conv_alpha": 3.0, "lora.lokr_factor": 2}
    model, seen = families.load_file(base), set()
    adapters.make_trainable(model, chosen(kind, **own))
    for layer in adapted(model).values():
        is_wide = getattr(layer.get_base_layer(), "kernel_size", (1, 1)) == (3, 3)
        alpha = layer.lora_alpha if isinstance(layer, LoraLayer) else layer.alpha
        assert (layer.r["default"], alpha["default"]) == ((2, 3.0) if is_wide else (4, 8.0))
        seen.add(is_wide)
    assert seen == {True, False}
    written = lora.lora_tensors(model.parts, family, half=False)
    alphas = {tensor.item() for name, tensor in written.items() if name.endswith("alpha")}
    assert alphas == ({0.0} if kind == "oft" else {3.0, 8.0})  # of one that turns nothing yet
    inner = {"loha": "hada_w1_b", "lokr": "lokr_w2_b", "oft": "oft_blocks"}.get(kind, "lora_down.weight")
    ranks = {tensor.shape[-1 if kind == "oft" else 0] for name, tensor in written.items() if name.endswith(inner)}
    assert ranks == {2, 4}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_starts_at_the_model_and_learns_from_the_first_step(kind: str, base: Path, family: str) -> None:
    started = session(families.load_file(base), **{"general.method": "lora", "lora.kind": kind, "lora.rank": 2})
    plain = session(families.load_file(base))
    first, before = losses(started), losses(plain)
    assert first[0].item() == pytest.approx(before[0].item(), abs=1e-5)
    first[0].backward()
    moved = [p.grad.abs().max().item() for p in started.trained.named().values() if p.grad is not None]
    assert any(moved)
    for group in started.optimizer.param_groups:
        group["lr"] = 1e-2
    for _ in range(3):
        started.optimizer.step()
        started.optimizer.zero_grad()
        losses(started)[0].backward()
    assert losses(started)[0].item() < first[0].item()


def test_doras_gradient_takes_the_norm_for_a_constant() -> None:
    """DoRA (arXiv 2402.09353), section 4.3 and equations 6 and 11, on one layer by hand."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"q": nn.Linear(5, 4, bias=False)})
    adapters._inject_adapters(model, chosen("dora"), "dora", "q")
    layer: Any = model["q"]
    weight = layer.get_base_layer().weight.detach()
    down, up, length = (layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.dora.weight)
    assert torch.allclose(length, weight.norm(dim=0))
    up.data.normal_()
    length.data.mul_(torch.rand(5) + 0.5)
    x, wanted = torch.randn(7, 5), torch.randn(7, 4)
    (layer(x) - wanted).square().sum().backward()
    a, b, m = (p.detach().clone().requires_grad_() for p in (down, up, length))
    merged = weight + 2.0 * b @ a
    ((x @ (m * merged / merged.detach().norm(dim=0)).T) - wanted).square().sum().backward()
    for ours, plain in ((down, a), (up, b), (length, m)):
        assert torch.allclose(ours.grad, plain.grad, atol=1e-4)


@pytest.mark.parametrize("side", [1, 3])
@pytest.mark.parametrize("size", [0.01, 1.0, 10.0])
def test_doras_norms_are_those_of_the_whole_weight(side: int, size: float) -> None:
    """Without making it: beside the full form in double precision, where little and where much has been learned."""
    torch.manual_seed(0)
    kind = nn.Linear(160, 384) if side == 1 else nn.Conv2d(48, 384, side)
    model = nn.ModuleDict({"q": kind})
    adapters._inject_adapters(model, chosen("dora"), "dora", "q")
    layer: Any = model["q"]
    assert torch.equal(layer.dora.scale(layer), torch.ones_like(layer.dora.weight)), "it starts as what it was"
    down, up, weight = (
        one.weight for one in (layer.lora_A["default"], layer.lora_B["default"], layer.get_base_layer())
    )
    up.data.normal_(std=size * float(weight.std()))
    whole = weight.double() + (2.0 * up.double().flatten(1) @ down.double().flatten(1)).reshape(weight.shape)
    wanted = layer.dora.weight / whole.transpose(0, 1).flatten(1).norm(dim=1)
    assert torch.allclose(layer.dora.scale(layer).double(), wanted, rtol=3e-6, atol=0)
    with torch.no_grad(), Live([], [weight, down, up, *layer.dora.parameters(), *layer.dora.buffers()]) as live:
        layer.dora.scale(layer)
    assert live.peak < weight.nbytes / 2


def test_a_column_that_is_all_but_taken_away_scales_nothing_beyond_measure() -> None:
    """Where rounding has the last word: what is left of it may come out below nothing."""
    model = nn.ModuleDict({"q": nn.Linear(64, 64, bias=False)})
    adapters._inject_adapters(model, chosen("dora"), "dora", "q")
    layer: Any = model["q"]
    weight, down, up = (
        one.weight.data for one in (layer.get_base_layer(), layer.lora_A["default"], layer.lora_B["default"])
    )
    rank = len(down)
    down.zero_()[:, :rank] = torch.eye(rank)
    up.copy_(-weight[:, :rank] / layer.scaling["default"])
    scale = layer.dora.scale(layer)
    assert torch.allclose(scale[rank:], torch.ones(64 - rank))
    assert scale[:rank].min() > 100
    assert scale.max() < 1001


def tensors(base: Path, family: str, **changes: Any) -> dict[str, Tensor]:
    """What the file of an untrained LoRA holds."""
    model = families.load_file(base)
    adapters.make_trainable(model, settings.parse({"lora.layers": "attention", **changes}))
    return lora.lora_tensors(model.parts, family, half=False)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "oft"])
def test_the_rank_is_that_of_every_layer_and_alpha_the_files(kind: str, base: Path, family: str) -> None:
    changes = {"lora.kind": kind, "lora.rank": 3, "lora.alpha": 1.5, "lora.lokr_factor": 2}
    found = tensors(base, family, **changes)
    inner = {"loha": "hada_w1_b", "lokr": "lokr_w2_b"}.get(kind, "lora_down.weight")
    ranks = {tensor.shape[0] for name, tensor in found.items() if name.endswith(inner)}
    assert ranks == {3}
    assert {tensor.item() for name, tensor in found.items() if name.endswith("alpha")} == {1.5}


def test_ofts_rank_is_its_blocks_side_and_alpha_how_strongly_they_count(base: Path, family: str) -> None:
    found = tensors(base, family, **{"lora.kind": "oft", "lora.rank": 12})
    assert {name.rpartition(".")[2] for name in found} == {"oft_blocks", "alpha"}
    blocks = [tensor for name, tensor in found.items() if name.endswith(".oft_blocks")]
    assert {tuple(tensor.shape[1:]) for tensor in blocks} == {(8, 8)}  # 12 divides no side of the tiny models
    sizes = []
    for alpha in (8.0, 16.0):
        model = families.load_file(base)
        for parameter in adapters.make_trainable(model, chosen("oft", **{"lora.alpha": alpha})).named().values():
            parameter.data.fill_(0.01)
        written = lora.lora_tensors(model.parts, family, half=False)
        sizes.append(max(tensor.max().item() for name, tensor in written.items() if name.endswith(".oft_blocks")))
    assert sizes == pytest.approx([0.01, 0.02])


@pytest.mark.parametrize("half", [True, False])
def test_an_oft_is_written_with_a_bound_that_it_never_reaches(half: bool, base: Path, family: str) -> None:
    """Of what turns nothing it is 0: A1111 would divide a length of 0 by itself, in half precision without
    anything added."""
    model = families.load_file(base)
    parameters = list(adapters.make_trainable(model, chosen("oft")).named().values())
    for parameter in parameters[1:]:
        parameter.data = torch.randn_like(parameter) * 10
    written = lora.lora_tensors(model.parts, family, half=half)
    bounds = [tensor.item() for name, tensor in written.items() if name.endswith(".alpha")]
    assert sorted(set(bounds)) == [0.0, 1000.0] and bounds.count(0.0) == 1


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_the_factor_is_the_first_ones_sides(factor: int, base: Path, family: str) -> None:
    found = tensors(base, family, **{"lora.kind": "lokr", "lora.lokr_factor": factor})
    assert {tuple(tensor.shape) for name, tensor in found.items() if name.endswith("lokr_w1")} == {(factor, factor)}


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_dropout_acts_in_training_and_not_in_drawing(kind: str, base: Path, family: str) -> None:
    model = families.load_file(base)
    for name, parameter in adapters.make_trainable(model, chosen(kind, **{"lora.dropout": 0.5})).named().items():
        parameter.data = parameter if "dora" in name else torch.randn_like(parameter) * 0.1
    layer = next(iter(adapted(model).values()))
    x = torch.ones(1, 4, layer.in_features) if hasattr(layer, "in_features") else torch.ones(1, 32, 8, 8)
    x = torch.ones(1, layer.get_base_layer().weight.shape[1], 8, 8) if layer.get_base_layer().weight.dim() == 4 else x
    layer.train()
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


# ---- which parts


def parts_of(base: Path, **changes: Any) -> tuple[Model, set[str]]:
    """A model prepared with settings, and the parts that are trained."""
    model = families.load_file(base)
    return model, set(adapters.make_trainable(model, settings.parse(changes)).parts)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_train_unet_off_trains_the_text_encoders_alone(base: Path, family: str, method: str) -> None:
    changes = {"general.method": method, "tuning.train_unet": False, "tuning.text_encoder_ratio": 1.0}
    texts = {"text_encoder", "text_encoder_2"} if family == "sdxl" else {"text_encoder"}
    model, parts = parts_of(base, **changes)
    assert parts == texts
    assert not any(p.requires_grad for p in model.unet.parameters())
    learning = session(families.load_file(base), **changes)
    losses(learning)[0].backward()
    assert all(p.grad is None for p in learning.model.unet.parameters())
    assert any(p.grad is not None and p.grad.any() for p in learning.trained.named().values())


def test_freezing_clip_normalization_freezes_those_layers_and_no_others(base: Path, family: str) -> None:
    """The predecessor's box only switched dropout off that CLIP does not have."""
    changes = {"general.method": "full", "tuning.text_encoder_ratio": 1.0}
    learning = session(families.load_file(base), **changes, **{"tuning.freeze_clip_normalization": True})
    plain = session(families.load_file(base), **changes)
    left_out = plain.trained.named().keys() - learning.trained.named().keys()
    assert left_out
    assert all("norm" in name and name.startswith("text_encoder") for name in left_out)
    assert not [name for name in learning.trained.named() if "norm" in name and not name.startswith("unet")]
    before = {name: p.clone() for name, p in learning.model.text_encoders["text_encoder"].named_parameters()}
    losses(learning)[0].backward()
    learning.optimizer.step()
    changed = {
        name
        for name, p in learning.model.text_encoders["text_encoder"].named_parameters()
        if not torch.equal(p, before[name])
    }
    assert changed
    assert not [name for name in changed if "norm" in name]


# ---- what cannot be gone on from


def start(base: Path, family: str, tensors: dict[str, Tensor], path: Path, **changes: Any) -> str:
    save_file(tensors, path)
    layers = lora_header.outlines(lora_header.open_file(path), open_source(base).tensors, family)
    return lora_start.objection(layers, settings.parse(changes))


def test_files_that_cannot_be_gone_on_from_are_named(base: Path, family: str, tmp_path: Path) -> None:
    site = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_"
    width = 64 if family != "sd1" else 32
    if family == "sd2":
        width = 64
    one = {f"{site}q.lora_down.weight": torch.ones(2, width), f"{site}q.lora_up.weight": torch.ones(width, 2)}
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    shapes = ((width, 2), (2, width)) * 2
    loha = {f"{site}k.{name}": torch.ones(shape) for name, shape in zip(names, shapes, strict=True)}
    path = tmp_path / "x.safetensors"
    assert start(base, family, one, path) == ""
    assert start(base, family, loha, path) == ""
    assert "several kinds" in start(base, family, {**one, **loha}, path)
    assert "DoRA on LoHa" in start(base, family, {**loha, f"{site}k.dora_scale": torch.ones(1, width)}, path)
    assert "no input to drop" in start(base, family, loha, path, **{"lora.dropout": 0.1})
    resting = {"memory.unet_weights": "int8", "batching.gradient_checkpointing": True}
    assert "look at the model's whole weights; set memory.unet_weights" in start(base, family, loha, path, **resting)
    assert start(base, family, one, path, **resting, **{"lora.kind": "loha", "lora.start_file": "x"}) == ""
    only_text = {"tuning.train_unet": False, "tuning.text_encoder_ratio": 1.0}
    assert "train_unet" in start(base, family, one, path, **only_text)


def test_a_layer_of_another_size_is_refused(base: Path, family: str, tmp_path: Path) -> None:
    key = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    save_file({f"{key}.lokr_w1": torch.ones(3, 3), f"{key}.lokr_w2": torch.ones(5, 5)}, tmp_path / "x.safetensors")
    source, model = open_source(base), families.load_file(base)
    with pytest.raises(UserError, match="another size"):
        layers = lora.read(tmp_path / "x.safetensors", source.tensors, family)
        lora.add(tmp_path / "x.safetensors", layers, source, model.parts, 1)
