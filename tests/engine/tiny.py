"""Very small models of every family with random weights, built by diffusers and transformers themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from dreambooth.core.models import checkpoint
from dreambooth.engine.checkpoints import original
from dreambooth.engine.checkpoints.entry import Entry
from dreambooth.engine.checkpoints.write import write
from dreambooth.engine.prompts.vocabulary import clip_tokenizer

FAMILIES = ("sd1", "sd2", "sd2-v", "sdxl", "sdxl-v")
FIRST = "model.diffusion_model.input_blocks.0.0.weight"
INPAINTING = ("sd1-inpainting", "sd2-inpainting", "sdxl-inpainting")  # the same, but for the first convolution
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def family_of(kind: str) -> str:
    return kind.split("-")[0]


def pipeline(kind: str) -> Any:
    """A random model as diffusers' pipeline; sdxl-v has zero terminal SNR."""
    torch.manual_seed(len(kind))
    prediction = "v_prediction" if kind.endswith("-v") else "epsilon"
    scheduler = DDIMScheduler(
        **BETAS,
        prediction_type=prediction,
        clip_sample=False,
        set_alpha_to_one=False,
        **(
            {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
            if kind == "sdxl-v"
            else {"steps_offset": 1}
        ),
    )
    family, inpaints = family_of(kind), kind in INPAINTING
    first = CLIPTextModel(_text("gelu" if family == "sd2" else "quick_gelu"))
    parts: dict[str, Any] = {"vae": _vae(0.13025 if kind.startswith("sdxl") else 0.18215), "scheduler": scheduler}
    parts |= {"text_encoder": _livelier(first), "unet": _unet(kind)}
    if family == "sdxl":
        second = _livelier(CLIPTextModelWithProjection(_text("gelu")))
        tokenizers = {"tokenizer": clip_tokenizer(), "tokenizer_2": clip_tokenizer(pad_token="!")}
        of_sdxl = StableDiffusionXLInpaintPipeline if inpaints else StableDiffusionXLPipeline
        return of_sdxl(**parts, **tokenizers, text_encoder_2=second)
    tokenizer = clip_tokenizer(pad_token="!") if family == "sd2" else clip_tokenizer()
    of_sd = StableDiffusionInpaintPipeline if inpaints else StableDiffusionPipeline
    return of_sd(
        **parts, tokenizer=tokenizer, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def modules(pipe: Any) -> dict[str, torch.nn.Module]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def write_original(path: Path, kind: str, dtype: torch.dtype = torch.float32, **metadata: str) -> Path:
    """The model in the original layout, with the metadata that tells what its weights do not."""
    own = original.own_tensors(modules(pipeline(kind)))
    entries = {name: Entry.of(tensor, dtype) for name, tensor in own.items()}
    said = {"modelspec.resolution": "64x64", **metadata}
    if kind.endswith("-v"):
        said["modelspec.prediction_type"] = "v"
    whole = original.entries(entries, family_of(kind))
    if kind == "sdxl-v":
        whole |= {"v_pred": Entry.of(torch.zeros(0)), "ztsnr": Entry.of(torch.zeros(0))}
    write(path, whole, said)
    return path


def write_inpainting(path: Path, plain: Path) -> Path:
    """An inpainting model that does what a plain one does, whatever it sees: its five more channels weigh nothing."""
    header, tensors = checkpoint.read_header(plain), load_file(plain)
    more = torch.zeros(tensors[FIRST].shape[0], 5, 3, 3, dtype=tensors[FIRST].dtype)
    save_file({**tensors, FIRST: torch.cat([tensors[FIRST], more], 1)}, path, header.metadata)
    return path


def write_folder(path: Path, kind: str, **options: Any) -> Path:
    """The model as diffusers itself saves it."""
    pipeline(kind).save_pretrained(path, **options)
    return path


def _text(activation: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=1,
        hidden_act=activation,
        projection_dim=32,
        bos_token_id=49406,
        eos_token_id=49407,
    )


def _vae(scale: float) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(32, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        scaling_factor=scale,
    )


def _unet(kind: str) -> UNet2DConditionModel:
    channels = 9 if kind in INPAINTING else 4
    if family_of(kind) == "sd1":
        return UNet2DConditionModel(
            in_channels=channels,
            sample_size=8,
            block_out_channels=(32, 32, 64, 64),
            cross_attention_dim=32,
            attention_head_dim=8,
        )
    if family_of(kind) == "sd2":
        return UNet2DConditionModel(
            in_channels=channels,
            sample_size=8,
            block_out_channels=(64, 64, 128, 128),
            cross_attention_dim=32,
            attention_head_dim=(1, 1, 2, 2),
            use_linear_projection=True,
        )
    return UNet2DConditionModel(
        in_channels=channels,
        sample_size=8,
        block_out_channels=(32, 64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 3),
        attention_head_dim=(1, 1, 2),
        cross_attention_dim=64,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32 + 6 * 8,
    )


def _livelier(module: torch.nn.Module) -> torch.nn.Module:
    """Fresh layers have weights of 1 and biases of 0, which would hide mistakes."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    return module
