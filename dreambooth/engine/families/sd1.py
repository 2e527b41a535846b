"""Stable Diffusion 1.x: CLIP-L, a UNet that predicts the noise, a VAE with 4 channels at an eighth of the size."""

from __future__ import annotations

from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from dreambooth.core.models.families import CHUNK_TOKENS
from dreambooth.engine.checkpoints.source import Source
from dreambooth.engine.families import shapes
from dreambooth.engine.families.loading import unfilled
from dreambooth.engine.families.model import Model
from dreambooth.engine.families.text_encoding import TextEmbedding
from dreambooth.engine.prompts.vocabulary import clip_tokenizer

LATENT_SCALE = 0.18215


class Sd1(Model):
    family = "sd1"

    def run_encoder(self, part: str, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        encoder = self.text_encoders[part]
        output = encoder(tokens.reshape(-1, CHUNK_TOKENS), output_hidden_states=self.clip_skip > 1)
        if self.clip_skip > 1:  # WebUIs put the last normalization behind any block
            hidden = encoder.final_layer_norm(output.hidden_states[-self.clip_skip])
        else:
            hidden = output.last_hidden_state
        return hidden.reshape(len(tokens), -1, hidden.shape[-1]), None

    def denoise(self, x_t: Tensor, t: Tensor, text: TextEmbedding, sizes: Tensor) -> Tensor:
        return self.unet(x_t, t, text.hidden, encoder_attention_mask=text.mask).sample


def build(source: Source) -> Sd1:
    with unfilled():
        unet = UNet2DConditionModel(**shapes.unet_config(source))
        vae = AutoencoderKL(**shapes.vae_config(source, LATENT_SCALE))
        encoder = CLIPTextModel(CLIPTextConfig(**shapes.text_config(source, "text_encoder", activation="quick_gelu")))
    return Sd1.of(source, unet, vae, {"text_encoder": encoder}, {"text_encoder": clip_tokenizer()})
