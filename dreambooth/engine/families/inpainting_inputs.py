"""What an inpainting model's UNet takes beside noisy latents: a mask, 1 where it is to paint, and the latents of the
picture with that part in grey. WebUIs and diffusers give it the same, in this order."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from dreambooth.core.models.families import LATENT_FACTOR
from dreambooth.engine import hardware
from dreambooth.engine.families.model import LATENT_CHANNELS, Model

CHANNELS = 1 + LATENT_CHANNELS


@torch.no_grad()
def nothing(model: Model, width: int, height: int) -> Tensor | None:
    """What it takes where it is to paint a whole picture of so many pixels, (1, 5, h, w); None of a plain model.

    The grey picture is encoded once for each size.
    """
    if not model.inpaints:
        return None
    if (width, height) not in model.greys:
        grey = torch.zeros(1, 3, height, width)
        everywhere = torch.ones(1, 1, height // LATENT_FACTOR, width // LATENT_FACTOR)
        latents, _ = model.encode_pictures(grey)
        model.greys[width, height] = torch.cat([hardware.brought(everywhere, model.device), latents], 1)
    return model.greys[width, height]


def masked(model: Model, pixels: Tensor, masks: Tensor) -> Tensor:
    """Latents (B, 4, h, w) of pictures (B, 3, H, W) in [-1, 1] of which masks (B, 1, H, W) hide what is 1."""
    latents, _ = model.encode_pictures(pixels * (1 - masks))
    return latents


def of_latents(masks: Tensor) -> Tensor:
    """Masks (B, 1, H, W) in the size of latents: every eighth value, as WebUIs and diffusers make them smaller."""
    height, width = masks.shape[-2] // LATENT_FACTOR, masks.shape[-1] // LATENT_FACTOR
    return functional.interpolate(masks, size=(height, width))


def joined(x: Tensor, around: Tensor | None) -> Tensor:
    """What the UNet takes: noisy latents (B, 4, h, w), and behind them what is around, (B or 1, 5, h, w)."""
    if around is None:
        return x
    return torch.cat([x, around.to(x.dtype).expand(len(x), -1, -1, -1)], 1)
