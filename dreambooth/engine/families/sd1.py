"""Stable Diffusion 1.x: CLIP-L, a UNet that predicts the noise, a VAE with 4 channels at an eighth of the size.

Widths and depths are read from the checkpoint, so that a smaller model of the same shape is the same family.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dreambooth.core import checkpoint
from dreambooth.engine.checkpoints import names
from dreambooth.engine.checkpoints.read import load_into
from dreambooth.engine.vocabulary import clip_tokenizer

LATENT_CHANNELS = 4
LATENT_FACTOR = 8  # pixels a latent, along each side
LATENT_SCALE = 0.18215
HEADS = 8  # of the UNet's attention, at every level
CLIP_HEAD_WIDTH = 64
UNET_LAYERS = 2  # residual blocks a level
SCHEDULER = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@dataclass
class Sd1:
    """A loaded model. The parts stay on the device that `to` put them on."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    resolution: int

    @property
    def device(self) -> torch.device:
        return self.unet.device

    def to(self, device: torch.device) -> None:
        for part in (self.unet, self.vae, self.text_encoder):
            part.to(device)

    def tokenize(self, prompts: list[str]) -> Tensor:
        """Prompts -> token numbers (B, 77)."""
        tokens = self.tokenizer(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        return tokens.input_ids

    def encode_text(self, prompts: list[str]) -> Tensor:
        """Prompts -> the text encoder's last hidden state (B, 77, width), float32."""
        tokens = self.tokenize(prompts).to(self.text_encoder.device)
        return self.text_encoder(tokens).last_hidden_state.float()

    def encode_pictures(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, H, W) in [-1, 1] -> mean and standard deviation of their latents (B, 4, H/8, W/8), scaled."""
        posterior = self.vae.encode(pixels.to(self.vae.device, self.vae.dtype)).latent_dist
        return posterior.mean.float() * LATENT_SCALE, posterior.std.float() * LATENT_SCALE

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, 4, h, w) -> pictures (B, 3, 8h, 8w) in [-1, 1], float32."""
        scaled = (latents / LATENT_SCALE).to(self.vae.device, self.vae.dtype)
        return self.vae.decode(scaled).sample.float().clamp(-1, 1)

    def unet_keys(self) -> dict[str, str]:
        """{the UNet's key: the checkpoint's key}."""
        return _unet_keys(self.unet)

    def text_encoder_keys(self) -> dict[str, str]:
        """{the text encoder's key: the checkpoint's key}."""
        return names.clip_keys(self.text_encoder.state_dict())


def load(path: Path, resolution: int) -> Sd1:
    """Reads a checkpoint into float32 on the CPU. Raises UserError for a file that is not of this family."""
    header = checkpoint.read_header(path)
    with init_empty_weights(include_buffers=False):
        unet = UNet2DConditionModel(**unet_config(header))
        vae = AutoencoderKL(**vae_config(header))
        text_encoder = CLIPTextModel(CLIPTextConfig(**clip_config(header)))
    load_into(path, unet, _unet_keys(unet), torch.float32)
    layout = vae.config
    vae_names = names.vae_keys(vae.state_dict(), levels=len(layout.block_out_channels), layers=layout.layers_per_block)
    load_into(path, vae, vae_names, torch.float32)
    load_into(path, text_encoder, names.clip_keys(text_encoder.state_dict()), torch.float32)
    for part in (unet, vae, text_encoder):
        part.requires_grad_(False).eval()
    return Sd1(unet, vae, text_encoder, clip_tokenizer(), resolution)


def unet_config(header: checkpoint.Header) -> dict[str, Any]:
    """The diffusers configuration of the UNet in a checkpoint, from the shapes of its weights."""
    shapes = _shapes(header, checkpoint.UNET)
    widths = _widths(shapes, "input_blocks.{}.0.out_layers.3.weight", start=1, step=UNET_LAYERS + 1)
    attentive = [
        f"input_blocks.{1 + level * (UNET_LAYERS + 1)}.1.norm.weight" in shapes for level in range(len(widths))
    ]
    down = ["CrossAttnDownBlock2D" if there else "DownBlock2D" for there in attentive]
    up = ["CrossAttnUpBlock2D" if there else "UpBlock2D" for there in reversed(attentive)]
    return {
        "block_out_channels": widths,
        "down_block_types": tuple(down),
        "up_block_types": tuple(up),
        "layers_per_block": UNET_LAYERS,
        "cross_attention_dim": next(s[1] for name, s in shapes.items() if name.endswith("attn2.to_k.weight")),
        "attention_head_dim": HEADS,
        "sample_size": checkpoint.describe(header).resolution // LATENT_FACTOR,
    }


def vae_config(header: checkpoint.Header) -> dict[str, Any]:
    """The diffusers configuration of the VAE in a checkpoint."""
    shapes = _shapes(header, checkpoint.VAE)
    widths = _widths(shapes, "encoder.down.{}.block.0.conv2.weight", start=0, step=1)
    layers = sum(f"encoder.down.0.block.{layer}.conv2.weight" in shapes for layer in range(8))
    return {
        "block_out_channels": widths,
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "layers_per_block": layers,
        "latent_channels": LATENT_CHANNELS,
        "scaling_factor": LATENT_SCALE,
    }


def clip_config(header: checkpoint.Header) -> dict[str, Any]:
    """The transformers configuration of the text encoder in a checkpoint."""
    shapes = {n.removeprefix("text_model."): s for n, s in _shapes(header, checkpoint.CLIP_L).items()}
    vocabulary, width = shapes["embeddings.token_embedding.weight"]
    layers = {int(name.split(".")[2]) for name in shapes if name.startswith("encoder.layers.")}
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes["encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": len(layers),
        "num_attention_heads": max(1, width // CLIP_HEAD_WIDTH),
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
        "projection_dim": 768,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }


def _unet_keys(unet: UNet2DConditionModel) -> dict[str, str]:
    layout = unet.config
    base = [name.replace(".base_layer.", ".") for name in unet.state_dict() if ".lora_" not in name]
    return names.unet_keys(base, levels=len(layout.block_out_channels), layers=layout.layers_per_block)


def _shapes(header: checkpoint.Header, prefix: str) -> dict[str, tuple[int, ...]]:
    return {name[len(prefix) :]: t.shape for name, t in header.tensors.items() if name.startswith(prefix)}


def _widths(shapes: dict[str, tuple[int, ...]], pattern: str, *, start: int, step: int) -> tuple[int, ...]:
    widths = []
    while (name := pattern.format(start + step * len(widths))) in shapes:
        widths.append(shapes[name][0])
    return tuple(widths)
