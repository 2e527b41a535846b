"""LoRA files of every family: ours in diffusers, others' in ours, gone on from, merged."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from dreambooth.core import settings
from dreambooth.core.errors import UserError
from dreambooth.core.models import checkpoint
from dreambooth.engine import families
from dreambooth.engine.bench.random_model import modules as full_size
from dreambooth.engine.checkpoints import lora, lora_header, names, original, weight_deltas
from dreambooth.engine.checkpoints.lora_layers import Layer
from dreambooth.engine.checkpoints.source import Source, open_source
from dreambooth.engine.checkpoints.write import write_tensors
from dreambooth.engine.drawing.sampling import Sampling, draw, make_scheduler
from dreambooth.engine.families.model import Model
from dreambooth.engine.families.pipelines import pipeline
from dreambooth.engine.training import adapters
from tests.engine import tiny

PROMPT = "a photo of a star"
CHOSEN = settings.parse(
    {"lora.rank": 4, "lora.alpha": 6.0, "lora.layers": "convolutions", "tuning.text_encoder_ratio": 1.0}
)


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def base(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_original(tmp_path_factory.mktemp("base") / "base.safetensors", kind)


@pytest.fixture(scope="module")
def trained(base: Path) -> Model:
    """The model with LoRA layers that are not zero."""
    model = families.load_file(base)
    torch.manual_seed(3)
    for parameter in adapters.make_trainable(model, CHOSEN).named().values():
        parameter.data = torch.randn_like(parameter) * 0.1
    return model


@pytest.fixture(scope="module")
def file(trained: Model, kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lora") / "taught.safetensors"
    write_tensors(path, lora.lora_tensors(trained.parts, kind, half=False), {})
    return path


def picture(model: Model) -> np.ndarray:
    return np.asarray(draw(model, [PROMPT], [5], Sampling(64, 64, 3, 3.0, scheduler="ddim"))[0], dtype=int)


def weights(source: Source) -> list[str]:
    return list(source.tensors)


def test_every_layer_is_there_under_a_name_that_webuis_know(file: Path, kind: str) -> None:
    layers = {name.split(".")[0] for name in load_file(file)}
    assert {name.split("_")[1] for name in layers} == {"unet", *({"te1", "te2"} if kind == "sdxl" else {"te"})}
    original = kind == "sdxl"
    assert any(("4_0_in_layers_2" if original else "resnets_0_conv1") in name for name in layers)
    assert any(("input_blocks_3_0_op" if original else "downsamplers_0_conv") in name for name in layers)
    text = [name for name in layers if "_te" in name]
    assert all("_text_model_encoder_layers_" in name for name in text)
    assert checkpoint.describe(checkpoint.read_header(file)).kind == "lora"


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_each_layer_of_a_full_size_unet_is_where_a1111_looks_for_it(family: str) -> None:
    """By its rule for names of diffusers' layout (extensions-builtin/Lora/networks.py), where it takes the upsampler of
    a first level for one without attention, as SDXL's is not."""
    own = [f"unet/{key}" for key in full_size(family)["unet"].state_dict()]
    places, keys = names.to_original(own, family), lora_header.keys(own, family)
    files = {place.name.removeprefix("model.diffusion_model.") for place in places.values()}
    there = {name.removesuffix(".weight").replace(".", "_") for name in files}
    for name, key in keys.items():
        found = key.removeprefix("lora_unet_")
        if up := re.fullmatch(r"up_blocks_(\d)_upsamplers_0_conv", found):
            found = f"output_blocks_{2 + 3 * int(up[1])}_{2 if int(up[1]) else 1}_conv"
            assert found in there, name
        if family == "sdxl":
            assert found in there, name
    assert len(set(keys.values())) == len(keys) > 300


@pytest.mark.parametrize("weight", [1.0, 0.4])
def test_diffusers_draws_with_our_file_what_we_draw(base: Path, file: Path, kind: str, weight: float) -> None:
    ours, source = families.load_file(base), open_source(base)
    plain = picture(ours)
    lora.add(file, lora.read(file, weights(source), kind), source, ours.parts, weight)
    pipe = pipeline(families.load_file(base))
    pipe.scheduler = make_scheduler("ddim", ours)
    pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name="taught")
    pipe.set_adapters("taught", weight)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        PROMPT, num_inference_steps=3, guidance_scale=3.0, width=64, height=64,
        generator=torch.Generator().manual_seed(5),
    ).images[0]  # fmt: skip
    assert np.abs(picture(ours) - np.asarray(theirs, dtype=int)).max() <= 2
    assert np.abs(picture(ours) - plain).max() > 5


def test_the_file_draws_what_the_training_saw(base: Path, trained: Model, file: Path, kind: str) -> None:
    model, source = families.load_file(base), open_source(base)
    lora.add(file, lora.read(file, weights(source), kind), source, model.parts, 1.0)
    assert np.abs(picture(model) - picture(trained)).max() <= 2


def as_diffusers(name: str, places: dict[str, str]) -> str:
    layer, _, ending = name.partition(".")
    part, _, path = places[layer].removesuffix(".weight").partition("/")
    path = path if part == "unet" else f"text_model.{path}"
    return f"{part}.{path}.{ending.replace('lora_down', 'lora.down').replace('lora_up', 'lora.up')}"


def as_peft(name: str, places: dict[str, str]) -> str:
    return as_diffusers(name, places).replace(".lora.down.", ".lora_A.").replace(".lora.up.", ".lora_B.")


def as_peft_with_the_adapters_name(name: str, places: dict[str, str]) -> str:
    return as_peft(name, places).replace("lora_A.", "lora_A.default.").replace("lora_B.", "lora_B.default.")


def as_paths(name: str, places: dict[str, str]) -> str:
    layer, _, ending = name.partition(".")
    part, _, path = places[layer].removesuffix(".weight").partition("/")
    return f"lora_unet_{path.replace('.', '_')}.{ending}" if part == "unet" else name


@pytest.mark.parametrize("spelled", [as_diffusers, as_peft, as_peft_with_the_adapters_name, as_paths])
def test_other_trainers_spellings_are_read(
    base: Path, file: Path, kind: str, spelled: Callable[[str, dict[str, str]], str], tmp_path: Path
) -> None:
    own = open_source(base)
    layers = lora.read(file, weights(own), kind)
    places = lora_header.spellings(weights(own), kind)
    tensors = load_file(file)
    has_alpha = spelled is as_paths
    other = {spelled(n, places): t for n, t in tensors.items() if has_alpha or not n.endswith(".alpha")}
    said = {f"{part}.lora_alpha": 6.0 for part in ("unet", "text_encoder", "text_encoder_2")}
    save_file(other, tmp_path / "other.safetensors", {"lora_adapter_metadata": json.dumps(said)})
    again = lora.read(tmp_path / "other.safetensors", weights(own), kind)
    assert again.keys() == layers.keys()
    assert all(torch.equal(again[name].down, layers[name].down) for name in layers)
    assert {layer.alpha for layer in again.values()} == {6.0}


def test_attention_processors_of_old_diffusers_are_read(base: Path, kind: str, tmp_path: Path) -> None:
    site = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor"
    own = open_source(base)
    name = "unet/down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0.weight"
    out, into = own.tensors[name].shape
    file = {f"{site}.to_out_lora.down.weight": torch.ones(2, into), f"{site}.to_out_lora.up.weight": torch.ones(out, 2)}
    save_file(file, tmp_path / "old.safetensors")
    layers = lora.read(tmp_path / "old.safetensors", weights(own), kind)
    assert {key: layer.alpha for key, layer in layers.items()} == {name: 2.0}


@pytest.mark.parametrize("only_text", [False, True])
def test_what_diffusers_scripts_save_is_read(base: Path, kind: str, only_text: bool, tmp_path: Path) -> None:
    """As its DreamBooth scripts do it, whose text encoders have names of their own."""
    pipe, saved = tiny.pipeline(kind), dict[str, dict[str, torch.Tensor]]()
    targets = ["to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj"]
    for part in ("text_encoder", *(("text_encoder_2",) if kind == "sdxl" else ()), *(() if only_text else ("unet",))):
        module = getattr(pipe, part)
        module.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights=False, target_modules=targets))
        saved[f"{part}_lora_layers"] = convert_state_dict_to_diffusers(get_peft_model_state_dict(module))
    pipe.save_lora_weights(tmp_path, **saved)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    assert any("lora_linear_layer" in name for name in load_file(file))
    layers = lora.read(file, weights(open_source(base)), kind)
    seen = {
        f"{part}/{names.canonical_key(part, path)}.weight": layer.get_delta_weight("default")
        for part, module in tiny.modules(pipe).items()
        for path, layer in module.named_modules()
        if isinstance(layer, LoraLayer)
    }
    assert layers.keys() == seen.keys() and len(seen) >= 12
    own = open_source(base)
    assert all(torch.allclose(layers[name].change(own.read(name)), change, atol=1e-6) for name, change in seen.items())


def test_pefts_own_folder_says_its_alpha(base: Path, kind: str, tmp_path: Path) -> None:
    own = open_source(base)
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    width = own.tensors[f"unet/{name}.weight"].shape[0]
    key = f"base_model.model.{name}"
    save_file(
        {f"{key}.lora_A.weight": torch.ones(2, width), f"{key}.lora_B.weight": torch.ones(width, 2)},
        tmp_path / "adapter_model.safetensors",
    )
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 8}', encoding="utf-8")
    layers = lora.read(tmp_path / "adapter_model.safetensors", weights(own), kind)
    assert [layer.alpha for layer in layers.values()] == [8.0]


@pytest.mark.parametrize(
    ("content", "alpha"),
    [
        (b'\xef\xbb\xbf{"lora_alpha": 8}', 8.0),  # as some editors of Windows write it
        (b'{"lora_alpha": 8', None),
        (b'["lora_alpha", 8]', None),
        (b'{"lora_alpha": "8"}', None),
        ('{"lora_alpha": 8}'.encode("utf-16"), None),
    ],
)
def test_a_configuration_that_is_damaged_refuses_the_file(
    base: Path, kind: str, content: bytes, alpha: float | None, tmp_path: Path
) -> None:
    """Without it the layers would count as strongly as they happen to have ranks."""
    own, name = open_source(base), "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    key, file = f"base_model.model.{name}", tmp_path / "adapter_model.safetensors"
    save_file({f"{key}.lora_A.weight": torch.ones(2, 32), f"{key}.lora_B.weight": torch.ones(32, 2)}, file)
    (tmp_path / "adapter_config.json").write_bytes(content)
    if alpha:
        assert [layer.alpha for layer in lora.read(file, weights(own), kind).values()] == [alpha]
        return
    with pytest.raises(UserError, match=f"^{tmp_path}/adapter_\\w+.* is damaged; download or copy it again"):
        lora.read(file, weights(own), kind)


@pytest.mark.parametrize("broken", ["lora_down.weight", "lora_up.weight", "alpha"])
def test_a_lora_of_values_that_are_not_finite_is_refused(base: Path, kind: str, broken: str, tmp_path: Path) -> None:
    """A model with it would draw nothing but black, and a run that went on from it would blame its pictures."""
    key = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    own = {"lora_down.weight": torch.ones(2, 32), "lora_up.weight": torch.ones(32, 2), "alpha": torch.tensor(2.0)}
    own[broken].view(-1)[0] = torch.nan
    save_file({f"{key}.{name}": tensor for name, tensor in own.items()}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=f"its layer {key} holds values that are not finite"):
        lora.read(tmp_path / "x.safetensors", weights(open_source(base)), kind)


@pytest.mark.parametrize("by_root", [False, True])
@pytest.mark.parametrize("spelled", ["diffusers", "peft"])
def test_layers_count_as_strongly_as_in_peft(
    base: Path, kind: str, spelled: str, by_root: bool, tmp_path: Path
) -> None:
    """With rsLoRA, and with ranks and alphas of their own for some layers."""
    pipe, some = tiny.pipeline(kind), {"attn1.to_q": 3, r"^mid_block\.attentions\.0\.proj_in": 5, "to_k": 7}
    config = LoraConfig(
        r=4, lora_alpha=6, init_lora_weights=False, use_rslora=by_root, target_modules=["to_q", "to_k", "proj_in"],
        rank_pattern={"attn2.to_q": 2}, alpha_pattern=some,
    )  # fmt: skip
    if spelled == "peft":
        wrapped = get_peft_model(pipe.unet, config)
        wrapped.save_pretrained(str(tmp_path))
        unet, file = wrapped.base_model.model, tmp_path / "adapter_model.safetensors"
    else:
        pipe.unet.add_adapter(config)
        pipe.save_lora_weights(
            tmp_path,
            unet_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(pipe.unet)),
            unet_lora_adapter_metadata=pipe.unet.peft_config["default"].to_dict(),
        )
        unet, file = pipe.unet, tmp_path / "pytorch_lora_weights.safetensors"
    found = [(path, layer) for path, layer in unet.named_modules() if isinstance(layer, LoraLayer)]
    layers, own = lora.read(file, weights(open_source(base)), kind), open_source(base)
    assert len(layers) == len(found) > 10 and len({layer.scaling["default"] for _, layer in found}) >= 5
    for path, layer in found:
        read = layers[f"unet/{path}.weight"].change(own.read(f"unet/{path}.weight"))
        assert torch.allclose(read, layer.get_delta_weight("default"), atol=1e-6), path


@pytest.mark.parametrize("some", [{"(to_q|to_k)": 3}, {"to_q": "much"}, ["to_q"]])
def test_alphas_that_cannot_be_read_refuse_the_file(base: Path, kind: str, some: object, tmp_path: Path) -> None:
    key = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = {f"{key}.lora_A.weight": torch.ones(2, 32), f"{key}.lora_B.weight": torch.ones(32, 2)}
    said = {"unet.lora_alpha": 6, "unet.alpha_pattern": some}
    save_file(tensors, tmp_path / "x.safetensors", {"lora_adapter_metadata": json.dumps(said)})
    header = lora_header.open_file(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="alpha_pattern"):
        lora_header.outlines(header, weights(open_source(base)), kind)


def test_going_on_starts_where_the_file_ends(base: Path, trained: Model, file: Path, kind: str) -> None:
    model = families.load_file(base)
    start = lora.by_module(lora.read(file, weights(open_source(base)), kind), model.parts)
    other = settings.parse({"lora.rank": 16, "tuning.text_encoder_ratio": 1.0})
    named = adapters.make_trainable(model, other, start).named()
    assert len(named) == 2 * len(load_file(file)) // 3
    assert np.abs(picture(model) - picture(trained)).max() <= 1
    again = lora.lora_tensors(model.parts, kind, half=False)
    assert all(torch.equal(tensor, again[name]) for name, tensor in load_file(file).items())


@pytest.mark.parametrize("kept_in", [torch.float32, torch.float16])
def test_a_small_change_survives_in_a_model_of_bfloat16(tmp_path: Path, kept_in: torch.dtype) -> None:
    """A thousandth of the weight is less than half a step of bfloat16: added to what is rounded, half of it is lost."""
    path = tiny.write_original(tmp_path / "base.safetensors", "sd1", kept_in)
    source = open_source(path)
    drawn, name = families.load(source, torch.bfloat16), "down_blocks.1.attentions.0.proj_in"
    before = drawn.unet.get_submodule(name).weight.float()
    torch.manual_seed(0)
    down, up = torch.randn(4, before.shape[1]), torch.randn(before.shape[0], 4)
    up *= 1e-3 * before.norm() / (up @ down).norm()
    lora.add(path, {f"unet/{name}.weight": Layer(down, up, 4.0)}, source, drawn.parts, 1.0)
    wanted, got = (up @ down).reshape(before.shape), drawn.unet.get_submodule(name).weight.float() - before
    assert float((got * wanted).sum() / wanted.square().sum()) == pytest.approx(1, abs=0.1)


def test_merging_equals_adding(base: Path, file: Path, kind: str) -> None:
    model, source = families.load_file(base), open_source(base)
    lora.add(file, lora.read(file, weights(source), kind), source, model.parts, 0.7)
    own = original.own_tensors(model.parts)
    changed = weight_deltas.added(source, weight_deltas.of_lora(file, source), 0.7)
    assert len(changed) == len(load_file(file)) // 3
    for name, entry in changed.items():
        assert torch.allclose(entry.get(), own[name].reshape(entry.shape), atol=1e-6)


def test_a_convolution_in_three_parts_is_added_as_the_whole() -> None:
    torch.manual_seed(0)
    down, mid, up = torch.randn(3, 5, 1, 1), torch.randn(3, 3, 3, 3), torch.randn(7, 3, 1, 1)
    x = torch.randn(1, 5, 6, 6)
    conv = torch.nn.functional.conv2d
    wanted = conv(conv(conv(x, down), mid, padding=1), up) * 2 / 3
    change = Layer(down, up, 2.0, mid).change(torch.zeros(7, 5, 3, 3))
    assert torch.allclose(conv(x, change, padding=1), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"lora_unet_nowhere.lora_down.weight": (2, 4), "lora_unet_nowhere.lora_up.weight": (4, 2)}, "no place"),
        (
            {
                f"{key}.{side}.weight": shape
                for key in ("lora_unet_conv_in", "unet.conv_in")
                for side, shape in (("lora_down", (2, 4)), ("lora_up", (4, 2)))
            },
            "lora_unet_conv_in and unet.conv_in change one and the same weight",
        ),
        ({"lora_unet_conv_in.lora_down.weight": (2, 4)}, "incomplete"),
        ({"lora_unet_conv_in.lora_up.weight": (4, 2), "lora_unet_conv_in.scalar": (1,)}, "conv_in.scalar is of a kind"),
        ({"lora_unet_conv_in.oft_diag": (2, 4, 4), "lora_unet_conv_out.hada_w1_a": (2, 4)}, "LyCORIS"),
        ({"lora_unet_conv_in.oft_blocks": (2, 2, 4, 4)}, "incomplete"),
        ({"lora_unet_conv_in.lora_down.weight": (0, 4), "lora_unet_conv_in.lora_up.weight": (4, 0)}, "incomplete"),
        ({"lora_unet_conv_in.lora_down.weight": (4,), "lora_unet_conv_in.lora_up.weight": (4,)}, "incomplete"),
        ({"lora_unet_conv_in.hada_w1_a": (2, 4)}, "incomplete"),
        ({"lora_unet_conv_in.lokr_w1": (2, 4), "lora_unet_conv_in.lokr_w2_a": (2, 4)}, "incomplete"),
        (
            {
                "lora_unet_conv_in.lora_down.weight": (2, 4),
                "lora_unet_conv_in.lora_up.weight": (4, 2),
                "lora_unet_conv_in.dora_scale": (4, 1),
            },
            "a DoRA whose lengths are those of outputs",
        ),
        ({"something.weight": (2, 2)}, "not a LoRA"),
    ],
)
def test_what_does_not_fit_is_said(
    base: Path, kind: str, tensors: dict[str, tuple[int, ...]], said: str, tmp_path: Path
) -> None:
    save_file({name: torch.ones(shape) for name, shape in tensors.items()}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=said):
        lora.read(tmp_path / "x.safetensors", weights(open_source(base)), kind)


def test_what_goes_wrong_besides_is_not_told_as_another_size(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, change = Layer(torch.ones(2, 4), torch.ones(8, 2), 2.0), Layer.change

    def broken(own: Layer, weight: torch.Tensor) -> torch.Tensor:
        if weight.device.type == "cpu":
            raise RuntimeError("the card fell out")
        return change(own, weight)

    monkeypatch.setattr(Layer, "change", broken)
    with pytest.raises(RuntimeError, match="fell out"):
        lora.fitting_change(Path("x"), "a.weight", layer, torch.ones(8, 4))
    with pytest.raises(UserError, match="another size"):
        lora.fitting_change(Path("x"), "a.weight", layer, torch.ones(9, 4))


def test_a_layer_of_another_size_is_refused_before_anything_is_written(base: Path, kind: str, tmp_path: Path) -> None:
    key = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    save_file(
        {f"{key}.lora_down.weight": torch.ones(2, 7), f"{key}.lora_up.weight": torch.ones(7, 2)},
        tmp_path / "x.safetensors",
    )
    with pytest.raises(UserError, match="another size"):
        weight_deltas.of_lora(tmp_path / "x.safetensors", open_source(base))
