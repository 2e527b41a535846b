"""The miniatures' shapes, one a model family. All draw the same world with the same VAE and the same latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import CLIPTextConfig

from dreambooth.core.models.families import CHUNK_TOKENS

VOCABULARY = 49408  # CLIP's, with its two marks at the end
_WIDTH = 64  # of the UNet's levels and of one attention head; 32 groups need two channels each to see a plain colour


@dataclass(frozen=True)
class Text:
    """A text encoder. `depth` counts the blocks that the trained model runs through."""

    width: int
    activation: str
    pad_token: str
    depth: int = 4
    penultimate: bool = False  # gives the state before its last block, without the final norm
    pooled: bool = False  # gives the projected end mark, too

    def config(self) -> CLIPTextConfig:
        end = VOCABULARY - 1
        return CLIPTextConfig(
            vocab_size=VOCABULARY,
            hidden_size=self.width,
            intermediate_size=4 * self.width,
            num_hidden_layers=self.depth,
            num_attention_heads=1,
            max_position_embeddings=CHUNK_TOKENS,
            hidden_act=self.activation,
            projection_dim=self.width,
            bos_token_id=end - 1,
            eos_token_id=end,
            pad_token_id=end if self.pad_token == CLIP_PAD else 0,
        )


@dataclass(frozen=True)
class Shape:
    """What sets one family's miniature apart, and how long its UNet is trained.

    `least_weight` is the loss's weight where there is nothing but noise. It was meant to teach SDXL's miniature the
    backgrounds' colours; measured before and after, it has not.
    """

    title: str
    architecture: str  # as modelspec calls it
    prediction: str  # "epsilon" or "v"
    latent_scale: float
    text: tuple[Text, ...]
    unet: dict[str, Any]
    steps: int
    learning_rate: float
    least_weight: float = 0.0

    @property
    def sizes(self) -> bool:
        """Whether the UNet is told the picture's sizes and its crop."""
        return "addition_embed_type" in self.unet


CLIP_PAD = "<|endoftext|>"
OPEN_CLIP_PAD = "!"  # number 0

SD1 = Shape(
    title="DreamBooth miniature",
    architecture="stable-diffusion-v1",
    prediction="epsilon",
    latent_scale=0.18215,
    text=(Text(32, "quick_gelu", CLIP_PAD),),
    unet={"block_out_channels": (_WIDTH,) * 4, "cross_attention_dim": 32, "attention_head_dim": 8},
    steps=6500,
    learning_rate=1e-3,
)
SD2 = Shape(
    title="DreamBooth miniature of SD 2",
    architecture="stable-diffusion-v2-768-v",
    prediction="v",
    latent_scale=0.18215,
    text=(Text(24, "gelu", OPEN_CLIP_PAD),),  # the file has one more block, which nobody runs
    unet={
        "block_out_channels": (_WIDTH,) * 4,
        "cross_attention_dim": 24,
        "attention_head_dim": 1,  # the number of heads, in spite of its name
        "use_linear_projection": True,
    },
    steps=3600,
    learning_rate=1e-3,
)
_CLIP_L = Text(12, "quick_gelu", CLIP_PAD, depth=5, penultimate=True)  # 12 to 20 as 768 to 1280
_OPEN_CLIP_G = Text(20, "gelu", OPEN_CLIP_PAD, depth=5, penultimate=True, pooled=True)
SDXL = Shape(
    title="DreamBooth miniature of SDXL",
    architecture="stable-diffusion-xl-v1-base",
    prediction="epsilon",
    latent_scale=0.13025,
    text=(_CLIP_L, _OPEN_CLIP_G),
    unet={
        "block_out_channels": (_WIDTH,) * 3,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 1, 2),
        "cross_attention_dim": _CLIP_L.width + _OPEN_CLIP_G.width,
        "attention_head_dim": 1,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 32,
        "projection_class_embeddings_input_dim": _OPEN_CLIP_G.width + 6 * 32,
    },
    steps=3500,
    learning_rate=1e-3,
    least_weight=1.0,
)
SHAPES = {"sd1": SD1, "sd2": SD2, "sdxl": SDXL}
