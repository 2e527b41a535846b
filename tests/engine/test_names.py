"""Key names, with diffusers' own converters as the reference, and with what a real SD 1.5 file holds."""

from __future__ import annotations

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

from dreambooth.core import checkpoint
from dreambooth.core.layout import MINIATURE
from dreambooth.engine.checkpoints import names
from dreambooth.engine.families import sd1

SD15_UNET = {"cross_attention_dim": 768, "attention_head_dim": 8}
SD15_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}


def full_size() -> tuple[UNet2DConditionModel, AutoencoderKL]:
    with init_empty_weights():
        return UNet2DConditionModel(**SD15_UNET), AutoencoderKL(**SD15_VAE)


def test_a_full_size_model_has_the_original_files_number_of_keys() -> None:
    unet, vae = full_size()
    unet_keys = names.unet_keys(unet.state_dict(), levels=4, layers=2)
    vae_keys = names.vae_keys(vae.state_dict(), levels=4, layers=2)
    assert (len(unet_keys), len(vae_keys)) == (686, 248)
    everything = [*unet_keys.values(), *vae_keys.values()]
    assert len(set(everything)) == len(everything)
    for known in (
        "model.diffusion_model.input_blocks.3.0.op.weight",
        "model.diffusion_model.input_blocks.4.0.skip_connection.bias",
        "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_out.0.bias",
        "model.diffusion_model.output_blocks.2.1.conv.weight",
        "model.diffusion_model.output_blocks.5.2.conv.weight",
        "model.diffusion_model.out.2.weight",
        "first_stage_model.encoder.down.1.block.0.nin_shortcut.weight",
        "first_stage_model.decoder.up.3.upsample.conv.weight",
        "first_stage_model.decoder.mid.attn_1.proj_out.weight",
        "first_stage_model.post_quant_conv.bias",
    ):
        assert known in everything


def test_diffusers_reads_our_names_back() -> None:
    unet, vae = full_size()
    ours = names.unet_keys(unet.state_dict(), levels=4, layers=2)
    theirs = convert_ldm_unet_checkpoint({original: key for key, original in ours.items()}, config=dict(unet.config))
    assert theirs == {key: key for key in ours}
    ours = names.vae_keys(vae.state_dict(), levels=4, layers=2)
    file = {original: torch.empty(1, 1, device="meta") for original in ours.values()}
    assert set(convert_ldm_vae_checkpoint(file, config=dict(vae.config))) == set(ours)


def test_configurations_follow_from_the_weights_shapes() -> None:
    unet, vae = full_size()
    shapes = {k: unet.state_dict()[o].shape for o, k in names.unet_keys(unet.state_dict(), levels=4, layers=2).items()}
    shapes |= {k: vae.state_dict()[o].shape for o, k in names.vae_keys(vae.state_dict(), levels=4, layers=2).items()}
    header = checkpoint.Header(
        MINIATURE, {k: checkpoint.Tensor("F16", tuple(shape), 0, 0) for k, shape in shapes.items()}, {}, 0
    )
    assert sd1.unet_config(header)["sample_size"] == 64
    for config, module in ((sd1.unet_config(header), unet), (sd1.vae_config(header), vae)):
        for key in config.keys() - {"sample_size"}:
            assert module.config[key] == config[key], key


def test_text_encoder_names_do_not_depend_on_the_library_layout() -> None:
    wanted = "cond_stage_model.transformer.text_model.final_layer_norm.weight"
    for spelling in ("final_layer_norm.weight", "text_model.final_layer_norm.weight"):
        assert names.clip_keys([spelling]) == {spelling: wanted}
    assert names.clip_alias(wanted) == "cond_stage_model.transformer.final_layer_norm.weight"
