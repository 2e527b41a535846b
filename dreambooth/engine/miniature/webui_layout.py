"""Lets a WebUI load the miniature: the .yaml that A1111 reads beside a checkpoint of unusual widths, and the text
encoder's folder that it names. A full-size model needs neither."""

from __future__ import annotations

import json
from pathlib import Path

from dreambooth.core import checkpoint
from dreambooth.engine.families import sd1
from dreambooth.engine.vocabulary import write_vocabulary


def write(model_file: Path, clip_folder: Path) -> Path:
    """Writes the layout beside `model_file`, and `clip_folder` if it is not there. Returns the layout's path."""
    header = checkpoint.read_header(model_file)
    if not clip_folder.exists():
        _write_clip(header, clip_folder)
    target = model_file.with_suffix(".yaml")
    target.write_text(json.dumps(_layout(header, clip_folder), indent=1), encoding="utf-8")  # JSON is YAML too
    return target


def _layout(header: checkpoint.Header, clip_folder: Path) -> dict[str, object]:
    unet, vae = sd1.unet_config(header), sd1.vae_config(header)
    widths, vae_widths = unet["block_out_channels"], vae["block_out_channels"]
    unet_parameters = {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": widths[0],
        "attention_resolutions": [4, 2, 1], "num_res_blocks": unet["layers_per_block"],
        "channel_mult": [width // widths[0] for width in widths], "num_heads": sd1.HEADS,
        "use_spatial_transformer": True, "transformer_depth": 1, "legacy": False,
        "context_dim": unet["cross_attention_dim"], "use_checkpoint": False,
    }  # fmt: skip
    vae_parameters = {
        "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": vae_widths[0],
        "ch_mult": [width // vae_widths[0] for width in vae_widths], "num_res_blocks": vae["layers_per_block"],
        "attn_resolutions": [], "dropout": 0.0,
    }  # fmt: skip
    parts = {
        "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": unet_parameters},
        "first_stage_config": {
            "target": "ldm.models.autoencoder.AutoencoderKL",
            "params": {"embed_dim": 4, "ddconfig": vae_parameters, "lossconfig": {"target": "torch.nn.Identity"}},
        },
        "cond_stage_config": {
            "target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder",
            "params": {"version": str(clip_folder.resolve())},
        },
    }
    diffusion = {
        "linear_start": sd1.SCHEDULER["beta_start"], "linear_end": sd1.SCHEDULER["beta_end"], "timesteps": 1000,
        "first_stage_key": "jpg", "cond_stage_key": "txt", "image_size": 64, "channels": 4,
        "cond_stage_trainable": False, "conditioning_key": "crossattn", "use_ema": False,
        "scale_factor": sd1.LATENT_SCALE,
    }  # fmt: skip
    return {"model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": {**diffusion, **parts}}}


def _write_clip(header: checkpoint.Header, folder: Path) -> None:
    """The configuration and the vocabulary, as transformers' older tokenizers read them."""
    folder.mkdir(parents=True)
    words = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }
    files: dict[str, object] = {
        "config.json": {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", **sd1.clip_config(header)},
        "tokenizer_config.json": {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": 77,
            "do_lower_case": True,
            **words,
        },
        "special_tokens_map.json": words,
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    write_vocabulary(folder)
