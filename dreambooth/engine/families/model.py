"""What all families have in common: a UNet that works on a VAE's latents and reads one or two text encoders.

A family is one file beside this one. It says how its parts are built and how its prompts are read.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer
from typing_extensions import Self

from dreambooth.core.memory.drawing_memory import TILE
from dreambooth.core.models import anatomy
from dreambooth.core.models.anatomy import Anatomy
from dreambooth.core.models.families import LATENT_FACTOR
from dreambooth.core.models.model_file import Header
from dreambooth.engine import hardware
from dreambooth.engine.checkpoints.source import Source
from dreambooth.engine.families.text_encoding import TextEmbedding, TextEncoding

LATENT_CHANNELS = 4
BETAS = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@dataclass
class Model(TextEncoding):
    """A loaded model. The parts stay on the device that `to` put them on."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    resolution: int  # pixels
    prediction_type: str  # epsilon or v_prediction
    zero_terminal_snr: bool
    place: torch.device | None = None  # where it works; None where the UNet is
    drawn_in: torch.dtype | None = None  # how the UNet computes while it draws; None: in the precision of its weights
    traced: bool = True  # whether its predictions may be, while it draws
    header: Header | None = None  # of the file that it was read from
    greys: dict[tuple[int, int], Tensor] = field(default_factory=dict)  # by width and height; see inpainting_inputs.py

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
        if vae.tile_sample_min_size > TILE:  # by itself a VAE has tiles as large as a picture of its model
            vae.tile_sample_min_size, vae.tile_latent_min_size = TILE, TILE // LATENT_FACTOR
        return cls(
            text_encoders,
            tokenizers,
            unet,
            vae,
            about.resolution,
            about.prediction_type,
            about.zero_terminal_snr,
            header=source.header,
        )

    @cached_property
    def anatomy(self) -> Anatomy | None:
        """What it is made of; None where it was read from no file."""
        return anatomy.of(self.header) if self.header else None

    @property
    def parts(self) -> dict[str, nn.Module]:
        return {"unet": self.unet, "vae": self.vae, **self.text_encoders}

    @property
    def device(self) -> torch.device:
        return self.place or next(self.unet.parameters()).device  # diffusers looks through every module for it

    @property
    def inpaints(self) -> bool:
        """Whether its UNet takes what is around a part of a picture; see inpainting_inputs.py."""
        return int(self.unet.config.in_channels) > LATENT_CHANNELS

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

    def to(self, device: torch.device, aside: Iterable[str] = ()) -> None:
        """Moves the parts to the device, but those `aside`, which come there whenever they are used."""
        self.place = device
        self.greys.clear()
        if device.type == "cpu":
            hardware.choose_threads(sum(one.numel() for one in self.unet.parameters()))
        for name, part in self.parts.items():
            if name in aside and device.type != "cpu":
                self.offloader.add(name, part)
            else:
                part.to(device)

    @contextlib.contextmanager
    def evaluated(self) -> Iterator[None]:
        """Within it nothing in the model behaves as in training."""
        modes = [(part, part.training) for part in self.parts.values()]
        for part, _ in modes:
            part.eval()
        try:
            yield
        finally:
            for part, training in modes:
                part.train(training)

    @abstractmethod
    def denoise(self, x_t: Tensor, t: Tensor, text: TextEmbedding, sizes: Tensor) -> Tensor:
        """The UNet's prediction (B, 4, h, w). `sizes` (B, 6) as `whole_picture` has them; only SDXL reads them. An
        inpainting model takes (B, 9, h, w), see inpainting_inputs.py."""

    def encode_pictures(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, H, W) in [-1, 1] -> mean and standard deviation of their latents (B, 4, H/8, W/8), scaled."""
        with self.present("vae"), torch.autocast(self.device.type, enabled=False):
            posterior = self.vae.encode(pixels.to(self.vae.device, self.vae.dtype)).latent_dist
        found = (hardware.brought(one.float(), self.device) for one in (posterior.mean, posterior.std))
        mean, std = (one * self.latent_scale for one in found)
        return mean, std

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, 4, h, w) -> pictures (B, 3, 8h, 8w) in [-1, 1], float32.

        Never in half precision, whatever is around it: SDXL's VAE overflows in fp16, and pictures come out black.
        """
        scaled = (latents / self.latent_scale).to(self.device, self.vae.dtype)
        with self.present("vae"), torch.autocast(self.device.type, enabled=False):
            return self.vae.decode(scaled).sample.float().clamp(-1, 1)


def whole_picture(width: int, height: int) -> list[int]:
    """The size conditioning of a picture that is not cropped: its height and width in pixels, the crop's top and left
    corner, the height and width that are wanted (SDXL, arXiv 2307.01952, section 2.2)."""
    return [height, width, 0, 0, height, width]
