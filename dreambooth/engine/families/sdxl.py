"""SDXL: CLIP-L and OpenCLIP's ViT-bigG side by side, the pooled text of the second, and the picture's size and crop."""

from __future__ import annotations

from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from dreambooth.core.models.families import CHUNK_TOKENS
from dreambooth.engine import hardware
from dreambooth.engine.checkpoints.source import Source
from dreambooth.engine.families import shapes
from dreambooth.engine.families.loading import unfilled
from dreambooth.engine.families.model import Model
from dreambooth.engine.families.text_encoding import TextEmbedding
from dreambooth.engine.prompts.vocabulary import clip_tokenizer

LATENT_SCALE = 0.13025


class Sdxl(Model):
    family = "sdxl"

    def run_encoder(self, part: str, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        output = self.text_encoders[part](tokens.reshape(-1, CHUNK_TOKENS), output_hidden_states=True)
        hidden, count = output.hidden_states[-2], len(tokens)
        # The pooled text is the second's, of the first chunk, as WebUIs take it.
        pooled = output.text_embeds.reshape(count, self.chunks, -1)[:, 0] if part == "text_encoder_2" else None
        return hidden.reshape(count, -1, hidden.shape[-1]), pooled

    def make_unconditional(self, text: TextEmbedding, rows: Tensor) -> TextEmbedding:
        """Zeros, as SDXL was trained and as WebUIs and diffusers do."""
        assert text.pooled is not None
        return TextEmbedding(text.hidden.index_fill(0, rows, 0), text.pooled.index_fill(0, rows, 0), text.mask)

    def denoise(self, x_t: Tensor, t: Tensor, text: TextEmbedding, sizes: Tensor) -> Tensor:
        added = {"text_embeds": text.pooled, "time_ids": hardware.brought(sizes, x_t.device)}
        return self.unet(x_t, t, text.hidden, encoder_attention_mask=text.mask, added_cond_kwargs=added).sample


def build(source: Source) -> Sdxl:
    with unfilled():
        unet = UNet2DConditionModel(**shapes.unet_config(source))
        vae = AutoencoderKL(**shapes.vae_config(source, LATENT_SCALE))
        first = CLIPTextModel(CLIPTextConfig(**shapes.text_config(source, "text_encoder", activation="quick_gelu")))
        config = shapes.text_config(source, "text_encoder_2", activation="gelu")
        second = CLIPTextModelWithProjection(CLIPTextConfig(**{**config, "pad_token_id": 0}))
    encoders = {"text_encoder": first, "text_encoder_2": second}
    tokenizers = {"text_encoder": clip_tokenizer(), "text_encoder_2": clip_tokenizer(pad_token="!")}
    return Sdxl.of(source, unet, vae, encoders, tokenizers)
