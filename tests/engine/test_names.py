"""Key names, with diffusers' own converters as the reference, and with what real files hold."""

from __future__ import annotations

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from hypothesis import given
from hypothesis import strategies as st

from dreambooth.engine.bench.random_model import modules as full_size
from dreambooth.engine.checkpoints import names
from dreambooth.engine.checkpoints.names import Place


def own_names(family: str) -> list[str]:
    return [
        f"{part}/{names.canonical_key(part, key)}"
        for part, module in full_size(family).items()
        for key in module.state_dict()
    ]


OWN = {family: own_names(family) for family in ("sd1", "sd2", "sdxl")}


@pytest.mark.parametrize("family", OWN)
def test_every_name_goes_there_and_back_and_none_stands_twice(family: str) -> None:
    places = names.to_original(OWN[family], family)
    assert places.keys() == set(OWN[family])
    assert len(set(places.values())) == len(places)
    assert names.from_original({place.name for place in places.values()}) == places
    assert names.family_of(place.name for place in places.values()) == family


@pytest.mark.parametrize(
    ("family", "tensors", "known"),
    [
        # The counts are those of the published files, less CLIP's position numbers and OpenCLIP's logit_scale, and for
        # SD 2 less the last text block (12 tensors) and the text projection, which diffusers leaves out.
        (
            "sd1",
            686 + 248 + 196,
            {
                "unet/down_blocks.0.downsamplers.0.conv.weight": "model.diffusion_model.input_blocks.3.0.op.weight",
                "unet/down_blocks.1.resnets.0.conv_shortcut.bias": (
                    "model.diffusion_model.input_blocks.4.0.skip_connection.bias"
                ),
                "unet/up_blocks.0.upsamplers.0.conv.weight": "model.diffusion_model.output_blocks.2.1.conv.weight",
                "unet/up_blocks.1.upsamplers.0.conv.weight": "model.diffusion_model.output_blocks.5.2.conv.weight",
                "vae/decoder.up_blocks.0.upsamplers.0.conv.bias": "first_stage_model.decoder.up.3.upsample.conv.bias",
                "text_encoder/final_layer_norm.bias": "cond_stage_model.transformer.text_model.final_layer_norm.bias",
            },
        ),
        (
            "sd2",
            686 + 248 + 280,
            {
                "text_encoder/embeddings.position_embedding.weight": "cond_stage_model.model.positional_embedding",
                "text_encoder/encoder.layers.22.mlp.fc2.bias": (
                    "cond_stage_model.model.transformer.resblocks.22.mlp.c_proj.bias"
                ),
            },
        ),
        (
            "sdxl",
            1680 + 248 + 196 + 389,
            {
                "unet/add_embedding.linear_2.weight": "model.diffusion_model.label_emb.0.2.weight",
                "unet/up_blocks.0.upsamplers.0.conv.weight": "model.diffusion_model.output_blocks.2.2.conv.weight",
                "unet/mid_block.attentions.0.transformer_blocks.9.ff.net.2.bias": (
                    "model.diffusion_model.middle_block.1.transformer_blocks.9.ff.net.2.bias"
                ),
                "text_encoder/final_layer_norm.bias": (
                    "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias"
                ),
            },
        ),
    ],
)
def test_a_full_size_model_has_the_names_of_the_published_files(
    family: str, tensors: int, known: dict[str, str]
) -> None:
    places = names.to_original(OWN[family], family)
    assert len({place.name for place in places.values()}) == tensors
    assert {name: places[name] for name in known} == {name: Place(original) for name, original in known.items()}


def test_the_thirds_and_the_turned_are_where_open_clip_has_them() -> None:
    places = names.to_original(OWN["sdxl"], "sdxl")
    block = "conditioner.embedders.1.model.transformer.resblocks.31.attn.in_proj_"
    layer = "text_encoder_2/encoder.layers.31.self_attn."
    assert [places[f"{layer}{which}_proj.weight"].third for which in "qkv"] == [0, 1, 2]
    assert places[f"{layer}v_proj.bias"] == Place(f"{block}bias", "third", 2)
    projection = places["text_encoder_2/text_projection.weight"]
    assert projection == Place("conditioner.embedders.1.model.text_projection", "transposed")


@pytest.mark.parametrize("family", OWN)
def test_diffusers_reads_our_names_back(family: str) -> None:
    places = names.to_original(OWN[family], family)
    parts = full_size(family)
    file = {places[name].name: name.split("/")[1] for name in OWN[family] if name.startswith("unet/")}
    assert convert_ldm_unet_checkpoint(file, config=dict(parts["unet"].config)) == {key: key for key in file.values()}
    vae = {places[n].name: torch.empty(1, 1, device="meta") for n in OWN[family] if n.startswith("vae/")}
    wanted = {name.split("/")[1] for name in OWN[family] if name.startswith("vae/")}
    assert set(convert_ldm_vae_checkpoint(vae, config=dict(parts["vae"].config))) == wanted


def test_diffusers_reads_our_open_clip_names_back() -> None:
    places = names.to_original(OWN["sdxl"], "sdxl")
    prefix = "conditioner.embedders.1.model."
    shapes = {
        "text_encoder_2/" + names.canonical_key("text_encoder_2", key): tensor.shape
        for key, tensor in full_size("sdxl")["text_encoder_2"].state_dict().items()
    }
    file = {}
    for name, shape in shapes.items():
        rows = (3 * shape[0], *shape[1:]) if places[name].form == "third" else tuple(shape)
        file[places[name].name] = torch.empty(rows, device="meta")
    module = full_size("sdxl")["text_encoder_2"]
    read = convert_open_clip_checkpoint(module, file, prefix=prefix)
    assert {f"text_encoder_2/{names.canonical_key('text_encoder_2', key)}" for key in read} == shapes.keys()


@given(st.text(min_size=1, max_size=40))
def test_stray_names_are_left_out_and_never_break_the_rest(stray: str) -> None:
    places = names.to_original(OWN["sd1"][-40:], "sd1")
    files = {place.name for place in places.values()}
    assert names.from_original([*files, f"stray.{stray}"]) == places


def test_text_encoder_names_do_not_depend_on_the_library_layout() -> None:
    for spelling in ("final_layer_norm.weight", "text_model.final_layer_norm.weight"):
        assert names.canonical_key("text_encoder", spelling) == "final_layer_norm.weight"
    lost = names.from_original(["cond_stage_model.transformer.final_layer_norm.weight"])
    assert list(lost) == ["text_encoder/final_layer_norm.weight"]


def test_the_attention_of_old_diffusers_vaes_is_known() -> None:
    old = "encoder.mid_block.attentions.0.proj_attn.bias"
    assert names.canonical_key("vae", old) == "encoder.mid_block.attentions.0.to_out.0.bias"
