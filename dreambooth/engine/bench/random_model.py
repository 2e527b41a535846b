"""Full-size checkpoints with random weights: as large as the real ones, and free to make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from dreambooth.engine.checkpoints import original
from dreambooth.engine.checkpoints.entry import Entry
from dreambooth.engine.checkpoints.write import write

_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
_UNETS: dict[str, dict[str, Any]] = {
    "sd1": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "sd2": {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
# (width, blocks) of each text encoder; SD 2's last block is added when the file is written.
_TEXTS = {"sd1": ((768, 12),), "sd2": ((1024, 23),), "sdxl": ((768, 12), (1280, 32))}


def modules(family: str) -> dict[str, nn.Module]:
    """The parts of a full-size model, without weights."""
    with init_empty_weights():
        parts: dict[str, nn.Module] = {"unet": UNet2DConditionModel(**_UNETS[family]), "vae": AutoencoderKL(**_VAE)}
        for number, (width, blocks) in enumerate(_TEXTS[family]):
            config = CLIPTextConfig(
                hidden_size=width,
                intermediate_size=4 * width,
                num_attention_heads=width // 64,
                num_hidden_layers=blocks,
                projection_dim=width,
            )
            kind = CLIPTextModelWithProjection if number else CLIPTextModel
            parts["text_encoder_2" if number else "text_encoder"] = kind(config)
    return parts


def write_random(path: Path, family: str, dtype: torch.dtype, seed: int = 0, **metadata: str) -> None:
    """Writes such a checkpoint in the original layout, one tensor in memory at a time."""
    own = original.own_tensors(modules(family))
    entries = {
        name: Entry(dtype, tuple(tensor.shape), lambda name=name, shape=tuple(tensor.shape): _random(name, shape, seed))
        for name, tensor in own.items()
    }
    write(path, original.entries(entries, family), dict(metadata))


def _random(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Weights about as large as trained ones, norms around 1; the same for the same name and seed."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)) + seed)
    values = torch.randn(shape, generator=generator)
    if len(shape) > 1:
        return values * (torch.Size(shape[1:]).numel() ** -0.5)
    is_scale = name.endswith(".weight")  # a norm's
    return 1 + 0.05 * values if is_scale else 0.05 * values
