"""What all families have in common: a UNet that works on a VAE's latents and reads one or two text encoders.

A family is one file beside this one. It says how its parts are built and how its prompts are read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer
from typing_extensions import Self

from dreambooth.engine.checkpoints.source import Source

LATENT_CHANNELS = 4
LATENT_FACTOR = 8  # pixels a latent, along each side
BETAS = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@dataclass
class Text:
    """Prompts as the UNet reads them: hidden states (B, tokens, width), and the pooled text (B, width) of SDXL."""

    hidden: Tensor
    pooled: Tensor | None = None

    def __getitem__(self, index: Any) -> Text:
        return Text(self.hidden[index], None if self.pooled is None else self.pooled[index])

    def to(self, dtype: torch.dtype) -> Text:
        return Text(self.hidden.to(dtype), None if self.pooled is None else self.pooled.to(dtype))

    @staticmethod
    def cat(texts: Sequence[Text]) -> Text:
        pooled = [text.pooled for text in texts if text.pooled is not None]
        return Text(torch.cat([text.hidden for text in texts]), torch.cat(pooled) if pooled else None)


@dataclass
class Model(ABC):
    """A loaded model. The parts stay on the device that `to` put them on."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoders: dict[str, CLIPTextModel]  # by part: text_encoder, and text_encoder_2 where there are two
    tokenizers: dict[str, CLIPTokenizer]
    resolution: int  # pixels
    prediction_type: str  # epsilon or v_prediction
    zero_terminal_snr: bool

    family: ClassVar[str]

    @classmethod
    def of(
        cls,
        source: Source,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        text_encoders: dict[str, CLIPTextModel],
        tokenizers: dict[str, CLIPTokenizer],
    ) -> Self:
        """The model that a source holds, from its parts."""
        about = source.about
        return cls(
            unet, vae, text_encoders, tokenizers, about.resolution, about.prediction_type, about.zero_terminal_snr
        )

    @property
    def parts(self) -> dict[str, nn.Module]:
        return {"unet": self.unet, "vae": self.vae, **self.text_encoders}

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def latent_scale(self) -> float:
        return float(self.vae.config.scaling_factor)

    @property
    def noise_schedule(self) -> dict[str, Any]:
        """The configuration of diffusers' schedulers for this model."""
        return {
            **BETAS,
            "prediction_type": self.prediction_type,
            **({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if self.zero_terminal_snr else {}),
        }

    def to(self, device: torch.device) -> None:
        for part in self.parts.values():
            part.to(device)

    def tokenize(self, prompts: Sequence[str]) -> list[Tensor]:
        """Prompts -> token numbers (B, 77), one tensor for each text encoder."""
        return [
            tokenizer(
                list(prompts), padding="max_length", max_length=77, truncation=True, return_tensors="pt"
            ).input_ids
            for tokenizer in self.tokenizers.values()
        ]

    @abstractmethod
    def encode_tokens(self, tokens: Sequence[Tensor]) -> Text:
        """Token numbers, (B, 77) for each text encoder, -> what the UNet reads."""

    @abstractmethod
    def denoise(self, x_t: Tensor, t: Tensor, text: Text, sizes: Tensor) -> Tensor:
        """The UNet's prediction (B, 4, h, w). `sizes` (B, 6) as `whole_picture` has them; only SDXL reads them."""

    def encode_text(self, prompts: Sequence[str]) -> Text:
        """Prompts -> what the UNet reads, in float32."""
        tokens = [numbers.to(self.device) for numbers in self.tokenize(prompts)]
        return self.encode_tokens(tokens).to(torch.float32)

    def encode_pictures(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, H, W) in [-1, 1] -> mean and standard deviation of their latents (B, 4, H/8, W/8), scaled."""
        posterior = self.vae.encode(pixels.to(self.vae.device, self.vae.dtype)).latent_dist
        return posterior.mean.float() * self.latent_scale, posterior.std.float() * self.latent_scale

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, 4, h, w) -> pictures (B, 3, 8h, 8w) in [-1, 1], float32."""
        scaled = (latents / self.latent_scale).to(self.vae.device, self.vae.dtype)
        return self.vae.decode(scaled).sample.float().clamp(-1, 1)


def whole_picture(width: int, height: int) -> list[int]:
    """The size conditioning of a picture that is not cropped: its height and width in pixels, the crop's top and left
    corner, the height and width that are wanted (SDXL, arXiv 2307.01952, section 2.2)."""
    return [height, width, 0, 0, height, width]
