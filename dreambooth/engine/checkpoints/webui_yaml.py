"""The .yaml beside a checkpoint that tells a WebUI what the weights do not say: the layout and what the UNet predicts.

WebUIs know SD 1 and SDXL that predict the noise by themselves; SD 2 and every v-prediction model get a file. The names
of classes and parameters are those of Stability's two code bases, which A1111 builds its models from.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic
from dreambooth.core.models import webui_config
from dreambooth.engine.checkpoints.source import Source

_SD2_HEAD = 64


def beside(checkpoint: Path, source: Source, model: Any) -> contextlib.AbstractContextManager[None]:
    """Within it a checkpoint is put into its place; its .yaml, if the WebUI needs one, lies there before it, and not
    without it.

    A file beside the source is taken over if it says what the checkpoint predicts: a person, or a mark within the
    source, may know better than it. One that is there already stays as it is. Raises UserError if a WebUI would read it
    for something else than what the checkpoint is, or, within, if it cannot be written.
    """
    target, content = checkpoint.with_suffix(".yaml"), _content(source, model)
    if target.exists() and _read(target) != content:
        raise UserError(
            f"{target}: a WebUI would read this file with {checkpoint.name}, and it says something else than what that "
            "model is; name another file."
        )
    return _lying(target, content)


@contextlib.contextmanager
def _lying(target: Path, content: bytes | None) -> Iterator[None]:
    if content is None or target.exists():
        yield
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_bytes(target, content)
    except OSError as error:
        raise UserError(f"{target}: the file cannot be written ({error.strerror}).") from None
    try:
        yield
    except BaseException:
        atomic.discard(target)
        raise


def _content(source: Source, model: Any) -> bytes | None:
    own = source.header.path.with_suffix(".yaml")
    if own.is_file() and not source.header.configs:  # of a folder called m-v1.5 it would be m-v1's
        content = _read(own)
        if webui_config.prediction(content.decode(errors="replace"), model.family) == model.prediction_type:
            return content
    if model.family == "sd2" or model.prediction_type == "v_prediction":
        return json.dumps(layout(model), indent=1).encode()  # JSON is YAML too
    return None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: the file cannot be read ({error.strerror}).") from None


def layout(model: Any, clip: str | None = None) -> dict[str, Any]:
    """The file's content. `clip` names the folder of CLIP-L's configuration where it is of another size."""
    return {"model": _sdxl(model) if model.family == "sdxl" else _latent_diffusion(model, clip)}


def _latent_diffusion(model: Any, clip: str | None) -> dict[str, Any]:
    unet = _unet(model) | {"use_fp16": False, "image_size": 32, "use_spatial_transformer": True, "legacy": False}
    if model.family == "sd1":
        unet |= {"num_heads": model.unet.config.attention_head_dim, "transformer_depth": 1}
        text = {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder"}
        if clip:
            text["params"] = {"version": clip}
    else:
        unet |= {"num_head_channels": _SD2_HEAD, "use_linear_in_transformer": True, "transformer_depth": 1}
        text = {
            "target": "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder",
            "params": {"freeze": True, "layer": "penultimate"},
        }
    schedule = model.noise_schedule
    name, conditions = "LatentDiffusion", dict[str, Any](conditioning_key="crossattn")
    if model.inpaints:
        name, conditions = "LatentInpaintDiffusion", {"conditioning_key": "hybrid", "finetune_keys": None}
    parameters = conditions | {
        "parameterization": "v" if model.prediction_type == "v_prediction" else "eps",
        "linear_start": schedule["beta_start"],
        "linear_end": schedule["beta_end"],
        "timesteps": schedule["num_train_timesteps"],
        "first_stage_key": "jpg",
        "cond_stage_key": "txt",
        "image_size": 64,
        "channels": 4,
        "cond_stage_trainable": False,
        "scale_factor": model.latent_scale,
        "use_ema": False,
        "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": unet},
        "first_stage_config": {
            "target": "ldm.models.autoencoder.AutoencoderKL",
            "params": {"embed_dim": 4, "ddconfig": _vae(model), "lossconfig": {"target": "torch.nn.Identity"}},
        },
        "cond_stage_config": text,
    }
    return {"target": f"ldm.models.diffusion.ddpm.{name}", "params": parameters}


def _sdxl(model: Any) -> dict[str, Any]:
    config = model.unet.config
    modules, diffusion = "sgm.modules", "sgm.modules.diffusionmodules"
    scaling = "VScaling" if model.prediction_type == "v_prediction" else "EpsScaling"
    unet = _unet(model) | {
        "adm_in_channels": config.projection_class_embeddings_input_dim,
        "num_classes": "sequential",
        "num_head_channels": _SD2_HEAD,
        "use_linear_in_transformer": True,
        "transformer_depth": list(config.transformer_layers_per_block),
        "spatial_transformer_attn_type": "softmax-xformers",
    }
    encoders = [
        _embedder("txt", "FrozenCLIPEmbedder", layer="hidden", layer_idx=_blocks(model, "text_encoder") - 1),
        _embedder(
            "txt", "FrozenOpenCLIPEmbedder2", arch="ViT-bigG-14", version="laion2b_s39b_b160k", freeze=True,
            layer="penultimate", always_return_pooled=True, legacy=False,
        ),
    ]  # fmt: skip
    for key in ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple"):
        encoders.append(_embedder(key, "ConcatTimestepEmbedderND", outdim=config.addition_time_embed_dim))
    denoiser = {
        "num_idx": model.noise_schedule["num_train_timesteps"],
        "scaling_config": {"target": f"{diffusion}.denoiser_scaling.{scaling}"},
        "discretization_config": {"target": f"{diffusion}.discretizer.LegacyDDPMDiscretization"},
    }
    vae = {"embed_dim": 4, "ddconfig": _vae(model) | {"attn_type": "vanilla-xformers"}}
    parameters = {
        "scale_factor": model.latent_scale,
        "disable_first_stage_autocast": True,
        "denoiser_config": {"target": f"{diffusion}.denoiser.DiscreteDenoiser", "params": denoiser},
        "network_config": {"target": f"{diffusion}.openaimodel.UNetModel", "params": unet},
        "conditioner_config": {"target": f"{modules}.GeneralConditioner", "params": {"emb_models": encoders}},
        "first_stage_config": {
            "target": "sgm.models.autoencoder.AutoencoderKL",
            "params": vae | {"lossconfig": {"target": "torch.nn.Identity"}},
        },
    }
    return {"target": "sgm.models.diffusion.DiffusionEngine", "params": parameters}


def _embedder(key: str, name: str, **parameters: Any) -> dict[str, Any]:
    target = f"sgm.modules.encoders.modules.{name}"
    return {"is_trainable": False, "input_key": key, "target": target, "params": parameters}


def _unet(model: Any) -> dict[str, Any]:
    config = model.unet.config
    widths = config.block_out_channels
    attentive = [2**level for level, kind in enumerate(config.down_block_types) if kind.startswith("CrossAttn")]
    return {
        "in_channels": config.in_channels,
        "out_channels": 4,
        "model_channels": widths[0],
        "attention_resolutions": attentive[::-1],
        "num_res_blocks": config.layers_per_block,
        "channel_mult": [width // widths[0] for width in widths],
        "context_dim": config.cross_attention_dim,
        "use_checkpoint": False,
    }


def _vae(model: Any) -> dict[str, Any]:
    config = model.vae.config
    widths = config.block_out_channels
    return {
        "double_z": True,
        "z_channels": config.latent_channels,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": widths[0],
        "ch_mult": [width // widths[0] for width in widths],
        "num_res_blocks": config.layers_per_block,
        "attn_resolutions": [],
        "dropout": 0.0,
    }


def _blocks(model: Any, part: str) -> int:
    return int(model.text_encoders[part].config.num_hidden_layers)
