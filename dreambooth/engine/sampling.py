"""Drawing pictures from a model: for class pictures, previews and Generate alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
)
from PIL import Image

from dreambooth.core.errors import UserError
from dreambooth.engine.families.model import LATENT_CHANNELS, LATENT_FACTOR, Model, Text, whole_picture

SCHEDULERS: dict[str, tuple[type, dict[str, Any]]] = {
    "dpm++": (DPMSolverMultistepScheduler, {}),
    "ddim": (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
    "euler": (EulerDiscreteScheduler, {}),
    "euler_a": (EulerAncestralDiscreteScheduler, {}),
    "lms": (LMSDiscreteScheduler, {}),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1}),
}

NO_ZERO_TERMINAL_SNR = ("lms", "pndm")


@dataclass(frozen=True)
class Sampling:
    """How to draw: everything but the prompts and the seeds. Width and height in pixels."""

    width: int
    height: int
    steps: int = 20
    guidance_scale: float = 7.5
    negative_prompt: str = ""
    scheduler: str = "dpm++"


@torch.no_grad()
def draw(
    model: Model, prompts: list[str], seeds: list[int], sampling: Sampling, on_step: Callable[[], None] | None = None
) -> list[Image.Image]:
    """One RGB picture for each prompt, each from its own seed, so that a batch changes nothing.

    `on_step` is called before each sampling step and may raise to stop. Raises UserError for a scheduler that does not
    go with this model.
    """
    scheduler = make_scheduler(sampling.scheduler, model)
    scheduler.set_timesteps(sampling.steps)
    shape = (LATENT_CHANNELS, sampling.height // LATENT_FACTOR, sampling.width // LATENT_FACTOR)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    latents = torch.stack([torch.randn(shape, generator=g) for g in generators]).to(model.device)
    latents = latents * scheduler.init_noise_sigma
    text = model.encode_text(prompts)
    guided = sampling.guidance_scale > 1
    if guided:
        text = Text.cat([model.encode_text([sampling.negative_prompt] * len(prompts)), text])
    text = text.to(model.unet.dtype)
    sizes = torch.tensor([whole_picture(sampling.width, sampling.height)] * len(text.hidden), device=model.device)
    for t in scheduler.timesteps:
        if on_step:
            on_step()
        x = scheduler.scale_model_input(torch.cat([latents, latents]) if guided else latents, t)
        predicted = model.denoise(x.to(model.unet.dtype), t, text, sizes).float()
        if guided:
            without, with_prompt = predicted.chunk(2)
            predicted = without + sampling.guidance_scale * (with_prompt - without)
        takes_generator = isinstance(scheduler, EulerAncestralDiscreteScheduler)
        latents = scheduler.step(
            predicted, t, latents, **({"generator": generators} if takes_generator else {})
        ).prev_sample
    return to_pictures(model.decode(latents))


def make_scheduler(name: str, model: Model) -> Any:
    """Diffusers' scheduler for this model. Raises UserError where the two do not go together."""
    cls, options = SCHEDULERS[name]
    if model.zero_terminal_snr and name in NO_ZERO_TERMINAL_SNR:
        raise UserError(
            f"The scheduler {name} cannot draw with a model of zero terminal SNR; choose dpm++, ddim, euler or euler_a."
        )
    return cls(**model.noise_schedule, **options)


def to_pictures(pixels: torch.Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in [-1, 1] -> RGB pictures."""
    array = ((pixels.cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(np.ascontiguousarray(picture)) for picture in array]
