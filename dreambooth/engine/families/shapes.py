"""The configurations of a model's parts, from the names and shapes of its weights.

So a file needs no configuration beside it, and a smaller model of the same shape is the same family. Only the number of
attention heads cannot be seen in the weights: a Diffusers folder says it, otherwise it follows from the family.
"""

from __future__ import annotations

import re
from typing import Any

from dreambooth.core.errors import UserError
from dreambooth.core.models.families import LATENT_FACTOR
from dreambooth.engine.checkpoints.source import Source
from dreambooth.engine.families.model import LATENT_CHANNELS
from dreambooth.engine.prompts.vocabulary import TOKENS

CLIP_HEAD_WIDTH = 64
UNET_HEAD_WIDTH = 64  # of SD 2 and SDXL; SD 1 has eight heads at every level
SD1_HEADS = 8

Shapes = dict[str, tuple[int, ...]]


def shapes(source: Source, part: str) -> Shapes:
    found = {name[len(part) + 1 :]: t.shape for name, t in source.tensors.items() if name.startswith(f"{part}/")}
    if not found:
        raise UserError(f"{source.header.path}: it has no {part.replace('_', ' ')}.")
    return found


def unet_config(source: Source) -> dict[str, Any]:
    """The diffusers configuration of the UNet. Raises UserError for a UNet of another build."""
    weights = shapes(source, "unet")
    try:
        return _unet_config(source, weights)
    except (KeyError, IndexError, StopIteration, ValueError, ZeroDivisionError):
        raise UserError(f"{source.header.path}: its UNet is built in a way that is not known here.") from None


def _unet_config(source: Source, weights: Shapes) -> dict[str, Any]:
    widths = _sides(weights, r"down_blocks\.(\d+)\.resnets\.0\.conv2\.weight")
    depths = [
        _count(weights, rf"down_blocks\.{level}\.attentions\.0\.transformer_blocks\.(\d+)\.")
        for level in range(len(widths))
    ]
    heads = source.header.configs.get("unet", {}).get("attention_head_dim")
    if heads is None:
        heads = SD1_HEADS if source.about.family == "sd1" else [max(1, width // UNET_HEAD_WIDTH) for width in widths]
    config = {
        "in_channels": weights["conv_in.weight"][1],
        "block_out_channels": widths,
        "down_block_types": tuple("CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths),
        "up_block_types": tuple("CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)),
        "layers_per_block": _count(weights, r"down_blocks\.0\.resnets\.(\d+)\."),
        "cross_attention_dim": next(s[1] for name, s in weights.items() if name.endswith("attn2.to_k.weight")),
        "attention_head_dim": heads if isinstance(heads, int) else tuple(heads),
        "transformer_layers_per_block": tuple(max(1, depth) for depth in depths),
        "use_linear_projection": len(next(s for name, s in weights.items() if name.endswith(".proj_in.weight"))) == 2,
        "sample_size": source.about.resolution // LATENT_FACTOR,
    }
    if source.about.family == "sdxl":
        inputs = weights["add_embedding.linear_1.weight"][1]
        pooled = shapes(source, "text_encoder_2")["text_projection.weight"][0]
        config["addition_embed_type"] = "text_time"
        config["addition_time_embed_dim"] = (inputs - pooled) // 6
        config["projection_class_embeddings_input_dim"] = inputs
    return config


def vae_config(source: Source, latent_scale: float) -> dict[str, Any]:
    """The diffusers configuration of the VAE."""
    weights = shapes(source, "vae")
    widths = _sides(weights, r"encoder\.down_blocks\.(\d+)\.resnets\.0\.conv2\.weight")
    return {
        "block_out_channels": widths,
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "layers_per_block": _count(weights, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "latent_channels": LATENT_CHANNELS,
        "scaling_factor": latent_scale,
        "sample_size": source.about.resolution,
    }


def text_config(source: Source, part: str, *, activation: str) -> dict[str, Any]:
    """The transformers configuration of a text encoder; of all blocks that the file holds."""
    weights = shapes(source, part)
    try:
        vocabulary, width = weights["embeddings.token_embedding.weight"]
        inner = weights["encoder.layers.0.mlp.fc1.weight"][0]
        longest = weights["embeddings.position_embedding.weight"][0]
    except (KeyError, ValueError):
        raise UserError(f"{source.header.path}: its {part.replace('_', ' ')} is incomplete.") from None
    if vocabulary < TOKENS:
        raise UserError(
            f"{source.header.path}: its {part.replace('_', ' ')} knows {vocabulary} tokens of CLIP's {TOKENS}; this is "
            "no plain Stable Diffusion model."
        )
    heads = source.header.configs.get(part, {}).get("num_attention_heads")
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": _count(weights, r"encoder\.layers\.(\d+)\."),
        "num_attention_heads": heads or max(1, width // CLIP_HEAD_WIDTH),
        "max_position_embeddings": longest,
        "hidden_act": activation,
        "projection_dim": weights.get("text_projection.weight", (768,))[0],
        "bos_token_id": TOKENS - 2,
        "eos_token_id": TOKENS - 1,
        "pad_token_id": TOKENS - 1,
    }


def _count(weights: Shapes, pattern: str) -> int:
    return 1 + max((int(match[1]) for name in weights if (match := re.match(pattern, name))), default=-1)


def _sides(weights: Shapes, pattern: str) -> tuple[int, ...]:
    found = {int(match[1]): shape[0] for name, shape in weights.items() if (match := re.fullmatch(pattern, name))}
    return tuple(found[level] for level in sorted(found))
