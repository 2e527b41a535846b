"""The further input channels of an inpainting model's UNet: a mask, 1 where it is to paint, and the latents of the
image with the masked part in grey. WebUIs and diffusers give it the same channels in this order."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from dreambooth.core.models.families import LATENT_FACTOR
from dreambooth.engine import hardware
from dreambooth.engine.families.model import LATENT_CHANNELS, Model

CHANNELS = 1 + LATENT_CHANNELS


@torch.no_grad()
def whole_picture_inputs(model: Model, width: int, height: int) -> Tensor | None:
    """The inputs for painting a whole image of `width` by `height` pixels, (1, 5, h, w); None for other models.

    The grey image is encoded once for each size.
    """
    if not model.inpaints:
        return None
    if (width, height) not in model.greys:
        grey = torch.zeros(1, 3, height, width)
        everywhere = torch.ones(1, 1, height // LATENT_FACTOR, width // LATENT_FACTOR)
        latents, _ = model.encode_pictures(grey)
        model.greys[width, height] = torch.cat([hardware.brought(everywhere, model.device), latents], 1)
    return model.greys[width, height]


def encode_masked(model: Model, pixels: Tensor, masks: Tensor) -> Tensor:
    """Latents (B, 4, h, w) of images (B, 3, H, W) in [-1, 1], grey where masks (B, 1, H, W) are 1."""
    latents, _ = model.encode_pictures(pixels * (1 - masks))
    return latents


def latent_masks(masks: Tensor) -> Tensor:
    """Masks (B, 1, H, W) -> (B, 1, h, w): every eighth value, as WebUIs and diffusers downsample them."""
    height, width = masks.shape[-2] // LATENT_FACTOR, masks.shape[-1] // LATENT_FACTOR
    return functional.interpolate(masks, size=(height, width))


def concatenate(x: Tensor, inputs: Tensor | None) -> Tensor:
    """The UNet's input: noisy latents (B, 4, h, w), and behind them the further inputs (B or 1, 5, h, w), if any."""
    if inputs is None:
        return x
    return torch.cat([x, inputs.to(x.dtype).expand(len(x), -1, -1, -1)], 1)
