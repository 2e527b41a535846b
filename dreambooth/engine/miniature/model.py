"""A miniature's learning parts: its text encoders and its UNet."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from dreambooth.core.models.families import CHUNK_TOKENS, LATENT_FACTOR
from dreambooth.engine.miniature import world
from dreambooth.engine.miniature.shapes import Shape
from dreambooth.engine.prompts.vocabulary import clip_tokenizer

WHOLE = (world.SIZE, world.SIZE, 0, 0, world.SIZE, world.SIZE)  # original height, width; crop top, left; target


class TextToNoise(nn.Module):
    """The parts that learn together; what the UNet predicts is its family's."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.tokenizers = [clip_tokenizer(text.pad_token) for text in shape.text]
        self.text_encoders = nn.ModuleList(
            (CLIPTextModelWithProjection if text.pooled else CLIPTextModel)(text.config()) for text in shape.text
        )
        self.unet = UNet2DConditionModel(sample_size=world.SIZE // LATENT_FACTOR, **shape.unet)

    @property
    def widths(self) -> list[int]:
        """The text encoders' shares of the context."""
        return [text.width for text in self.shape.text]

    def encode(self, captions: list[str]) -> tuple[Tensor, Tensor | None]:
        """Captions -> the UNet's context (B, 77, width) and the pooled text (B, width) of a family that has one."""
        states, pooled = [], None
        for text, tokenizer, encoder in zip(self.shape.text, self.tokenizers, self.text_encoders):
            tokens = tokenizer(captions, padding="max_length", max_length=CHUNK_TOKENS, return_tensors="pt").input_ids
            output = encoder(tokens, output_hidden_states=text.penultimate)
            states.append(output.hidden_states[-2] if text.penultimate else output.last_hidden_state)
            pooled = output.text_embeds if text.pooled else pooled
        return torch.cat(states, dim=-1), pooled

    def forward(self, noisy: Tensor, timesteps: Tensor, captions: list[str], sizes: Tensor) -> Tensor:
        """(B, 4, h, w), (B,), B captions and (B, 6) pixels -> the prediction (B, 4, h, w)."""
        context, pooled = self.encode(captions)
        added = {"text_embeds": pooled, "time_ids": sizes} if self.shape.sizes else None
        return self.unet(noisy, timesteps, context, added_cond_kwargs=added).sample
