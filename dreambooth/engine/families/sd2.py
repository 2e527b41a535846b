"""Stable Diffusion 2.x: OpenCLIP's ViT-H, read at its last block but one; the base model (512 pixels) predicts the
noise, the other (768 pixels) v."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from dreambooth.core.models.families import LATENT_FACTOR
from dreambooth.engine.checkpoints.source import Source
from dreambooth.engine.families import inpainting_inputs, shapes
from dreambooth.engine.families.loading import unfilled
from dreambooth.engine.families.model import LATENT_CHANNELS, Model
from dreambooth.engine.families.sd1 import LATENT_SCALE, Sd1
from dreambooth.engine.prompts.vocabulary import clip_tokenizer

VIT_H_WIDTH, VIT_H_BLOCKS = 1024, 24


class Sd2(Sd1):
    """Read like SD 1; only its text encoder is another."""

    family = "sd2"


def build(source: Source) -> Sd2:
    with unfilled():
        unet = UNet2DConditionModel(**shapes.unet_config(source))
        vae = AutoencoderKL(**shapes.vae_config(source, LATENT_SCALE))
        encoder = CLIPTextModel(CLIPTextConfig(**_text_config(source)))
    return Sd2.of(source, unet, vae, {"text_encoder": encoder}, {"text_encoder": clip_tokenizer(pad_token="!")})


@torch.no_grad()
def seems_to_predict_v(model: Model) -> bool:
    """Tells by one look at the UNet, as A1111 does: given a constant picture as if it were pure noise, a model of the
    noise answers with about that picture, a model of v with something far below it."""
    if model.unet.config.cross_attention_dim != VIT_H_WIDTH:  # the threshold is that of the real models
        return False
    x = torch.full((1, LATENT_CHANNELS, 8, 8), 0.5, dtype=model.unet.dtype)
    text = torch.full((1, 2, VIT_H_WIDTH), 0.5, dtype=model.unet.dtype)
    taken = inpainting_inputs.concatenate(
        x, inpainting_inputs.whole_picture_inputs(model, 8 * LATENT_FACTOR, 8 * LATENT_FACTOR)
    )
    return bool((model.unet(taken, 999, text).sample - x).float().mean() < -1)


def _text_config(source: Source) -> dict[str, object]:
    """Without the last block, which an original file holds and nothing reads. Some tools leave it out of the file."""
    config = shapes.text_config(source, "text_encoder", activation="gelu")
    blocks, width = config["num_hidden_layers"], config["hidden_size"]
    whole = source.places and (width != VIT_H_WIDTH or blocks == VIT_H_BLOCKS)
    return {**config, "num_hidden_layers": blocks - 1 if whole else blocks, "pad_token_id": 0}
