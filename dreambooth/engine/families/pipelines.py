"""Diffusers' pipelines around our parts: what exports and comparisons with diffusers start from."""

from __future__ import annotations

from typing import Any

from diffusers import (
    DDIMScheduler,
    PNDMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)

from dreambooth.engine.families.model import Model


def pipeline(model: Model) -> Any:
    """The pipeline that draws with this model."""
    schedule = model.noise_schedule
    if model.zero_terminal_snr:  # PNDM cannot draw with it
        scheduler: Any = DDIMScheduler(**schedule, clip_sample=False, set_alpha_to_one=False)
    else:
        scheduler = PNDMScheduler(**schedule, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)
    parts = {"unet": model.unet, "vae": model.vae, "scheduler": scheduler, **model.text_encoders}
    tokenizers = {part.replace("text_encoder", "tokenizer"): one for part, one in model.tokenizers.items()}
    if model.family == "sdxl":
        of_sdxl = StableDiffusionXLInpaintPipeline if model.inpaints else StableDiffusionXLPipeline
        return of_sdxl(**parts, **tokenizers)
    of_sd = StableDiffusionInpaintPipeline if model.inpaints else StableDiffusionPipeline
    return of_sd(**parts, **tokenizers, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
