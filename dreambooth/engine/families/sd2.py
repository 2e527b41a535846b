"""Stable Diffusion 2.x: OpenCLIP's ViT-H, read at its last block but one; the base model (512 pixels) predicts the
noise, the other (768 pixels) v."""

from __future__ import annotations

from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from dreambooth.engine.checkpoints.source import Source
from dreambooth.engine.families import shapes
from dreambooth.engine.families.sd1 import LATENT_SCALE, Sd1
from dreambooth.engine.vocabulary import clip_tokenizer

VIT_H_WIDTH, VIT_H_BLOCKS = 1024, 24


class Sd2(Sd1):
    """Read like SD 1; only its text encoder is another."""

    family = "sd2"


def build(source: Source) -> Sd2:
    with init_empty_weights(include_buffers=False):
        unet = UNet2DConditionModel(**shapes.unet_config(source))
        vae = AutoencoderKL(**shapes.vae_config(source, LATENT_SCALE))
        encoder = CLIPTextModel(CLIPTextConfig(**_text_config(source)))
    return Sd2.of(source, unet, vae, {"text_encoder": encoder}, {"text_encoder": clip_tokenizer(pad_token="!")})


def _text_config(source: Source) -> dict[str, object]:
    """Without the last block, which an original file holds and nothing reads. Some tools leave it out of the file."""
    config = shapes.text_config(source, "text_encoder", activation="gelu")
    blocks, width = config["num_hidden_layers"], config["hidden_size"]
    whole = source.places and (width != VIT_H_WIDTH or blocks == VIT_H_BLOCKS)
    return {**config, "num_hidden_layers": blocks - 1 if whole else blocks, "pad_token_id": 0}
