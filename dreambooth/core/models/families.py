"""The model families that can be trained, and the sizes that are facts of their architectures."""

from __future__ import annotations

FAMILIES = {"sd1": "Stable Diffusion 1", "sd2": "Stable Diffusion 2", "sdxl": "SDXL"}
RESOLUTIONS = {"sd1": 512, "sd2": 768, "sdxl": 1024}  # pixels along each side that the largest of a family was made for
SD2_BASE_RESOLUTION = 512  # of the SD 2 models that predict epsilon

TEXT_WIDTHS = {"sd1": (768,), "sd2": (1024,), "sdxl": (768, 1280)}  # of the hidden states of each text encoder
# The family by the width of what its UNet reads: the hidden states of all its text encoders, side by side.
FAMILIES_BY_CONTEXT = {sum(widths): family for family, widths in TEXT_WIDTHS.items()}

CHUNK_TOKENS = 77  # that a CLIP text encoder encodes at once
PROMPT_TOKENS = CHUNK_TOKENS - 2  # of them without the begin and end marks

LATENT_FACTOR = 8  # pixels a latent, along each side
MIN_SIDE = 64  # pixels


def is_image_side(pixels: int) -> bool:
    """Whether an image's width or height can be encoded as latents that a UNet can work on."""
    return pixels >= MIN_SIDE and pixels % LATENT_FACTOR == 0
