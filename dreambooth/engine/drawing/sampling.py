"""Drawing pictures from a model: for class pictures, previews and Generate alike."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image

from dreambooth.core.errors import UserError
from dreambooth.core.models.families import LATENT_FACTOR
from dreambooth.engine import hardware
from dreambooth.engine.drawing import sampling_choice
from dreambooth.engine.drawing.prediction import Predictions
from dreambooth.engine.drawing.sampling_choice import Sampling
from dreambooth.engine.families import inpainting_inputs
from dreambooth.engine.families.model import LATENT_CHANNELS, Model, whole_picture
from dreambooth.engine.families.text_encoding import TextEmbedding

_KEPT_PROMPTS = 256  # a prompt of SDXL takes 0.6 MB

_KARRAS = {"use_karras_sigmas": True}
_SDE = {"algorithm_type": "sde-dpmsolver++"}
_DDIM = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}

SCHEDULERS: dict[str, tuple[type, dict[str, Any]]] = {
    "dpm++": (diffusers.DPMSolverMultistepScheduler, {}),
    "dpm++_karras": (diffusers.DPMSolverMultistepScheduler, _KARRAS),
    "dpm++_sde": (diffusers.DPMSolverMultistepScheduler, _SDE),
    "dpm++_sde_karras": (diffusers.DPMSolverMultistepScheduler, {**_SDE, **_KARRAS}),
    "dpm++_single": (diffusers.DPMSolverSinglestepScheduler, {"lower_order_final": True}),
    "ddim": (diffusers.DDIMScheduler, _DDIM),
    "ddpm": (diffusers.DDPMScheduler, {"clip_sample": False, "steps_offset": 1}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler_karras": (diffusers.EulerDiscreteScheduler, _KARRAS),
    "euler_a": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "heun": (diffusers.HeunDiscreteScheduler, {}),
    "kdpm2": (diffusers.KDPM2DiscreteScheduler, {}),
    "kdpm2_a": (diffusers.KDPM2AncestralDiscreteScheduler, {}),
    "deis": (diffusers.DEISMultistepScheduler, {}),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
    "sa": (diffusers.SASolverScheduler, {}),
    "lms": (diffusers.LMSDiscreteScheduler, {}),
    "lms_karras": (diffusers.LMSDiscreteScheduler, _KARRAS),
    "pndm": (diffusers.PNDMScheduler, {"skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1}),
}


class NotDrawn(UserError):
    """What a model draws is no picture: its file would be black, and one of a class would be learned so."""


@torch.no_grad()
def draw(
    model: Model,
    prompts: list[str] | TextEmbedding,
    seeds: list[int],
    sampling: Sampling,
    on_step: Callable[[], None] | None = None,
    known: Known | None = None,
) -> list[Image.Image]:
    """One RGB picture for each prompt, given as words or as what the UNet reads, each from its own seed, so that a
    batch changes nothing. An inpainting model paints the whole picture, as in a WebUI's txt2img.

    `on_step` is called before each sampling step and may raise to stop. `known` is for pictures that are drawn one
    after the other with the same model. Raises UserError for a scheduler that does not go with this model, and
    NotDrawn where what is drawn is no picture.
    """
    scheduler = make_scheduler(sampling.scheduler, model)
    scheduler.set_timesteps(sampling.steps)
    shape = (LATENT_CHANNELS, sampling.height // LATENT_FACTOR, sampling.width // LATENT_FACTOR)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    latents = torch.stack([torch.randn(shape, generator=g) for g in generators]).to(model.device)
    latents = latents * scheduler.init_noise_sigma
    known = known or Known(model)
    text = prompts if isinstance(prompts, TextEmbedding) else known.read(prompts)
    guided = sampling.guidance_scale > 1
    if guided:
        text = TextEmbedding.cat([known.negative(sampling.negative_prompt, len(seeds)), text])
    text = text.to(model.unet.dtype)
    sizes = torch.tensor([whole_picture(sampling.width, sampling.height)] * len(text.hidden), device=model.device)
    nothing = inpainting_inputs.whole_picture_inputs(model, sampling.width, sampling.height)
    noise = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
    # The scheduler looks its steps up in the computer's memory; the UNet would have the device waited for at each.
    for t, t_there in zip(scheduler.timesteps, hardware.brought(scheduler.timesteps, model.device)):
        if on_step:
            on_step()
        x = scheduler.scale_model_input(torch.cat([latents, latents]) if guided else latents, t)
        x = inpainting_inputs.concatenate(x.to(model.unet.dtype), nothing)
        predicted = known.predict(x, t_there, text, sizes).float()
        if guided:
            without, with_prompt = predicted.chunk(2)
            predicted = without + sampling.guidance_scale * (with_prompt - without)
        latents = scheduler.step(predicted, t, latents, **noise).prev_sample
    pixels = model.decode(latents)
    are_numbers = pixels.isfinite().all()
    pictures = to_pictures(pixels)  # for which the device is waited for
    if not are_numbers:
        raise NotDrawn(_why_not(model))
    return pictures


class Known:
    """What is known of a model from pictures before, for as long as it does not change: prompts as it reads them, and
    how its predictions are traced."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.predict = Predictions(model)
        self._texts: dict[str, TextEmbedding] = {}
        self._negative: dict[str, TextEmbedding] = {}

    def read(self, prompts: list[str]) -> TextEmbedding:
        """Each prompt once and by itself, so that a picture does not depend on which others are drawn with it."""
        if missing := [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._texts]:
            if len(self._texts) + len(missing) > _KEPT_PROMPTS:
                self._texts = {prompt: text for prompt, text in self._texts.items() if prompt in prompts}
            self._texts.update(zip(missing, self.model.encode_texts([[prompt] for prompt in missing])))
        return TextEmbedding.cat([self._texts[prompt] for prompt in prompts])

    def negative(self, prompt: str, count: int) -> TextEmbedding:
        """The other side of classifier-free guidance, `count` times."""
        if prompt not in self._negative:
            self._negative = {prompt: self.model.encode_negative(prompt, 1)}
        return self._negative[prompt][torch.zeros(count, dtype=torch.long, device=self.model.device)]


def _why_not(model: Model) -> str:
    if torch.float16 in (model.unet.dtype, model.drawn_in):
        return (
            "tuning.mixed_precision: what the model draws in fp16 is no picture, as its numbers grow too large for it; "
            "set it to no, and if that does not help, take another checkpoint."
        )
    return (
        "The model draws NaN in place of a picture: its weights are damaged, or have grown too large while they "
        "learned. Take other weights, or a lower learning rate."
    )


def make_scheduler(name: str, model: Model) -> Any:
    """Diffusers' scheduler for this model. Raises UserError where the two do not go together."""
    cls, options = SCHEDULERS[name]
    if reason := sampling_choice.problem(name, zero_terminal_snr=model.zero_terminal_snr):
        raise UserError(f"The scheduler {reason}.")
    return cls(**model.noise_schedule, **options)


@contextlib.contextmanager
def decoding(model: Model, how: str) -> Iterator[None]:
    """Within it, latents become pictures all at once (whole), one at a time (sliced), or large ones in overlapping
    tiles (tiled). Only there: encoding in tiles would change what is trained on."""
    vae = model.vae
    before = vae.use_slicing, vae.use_tiling
    vae.use_slicing, vae.use_tiling = how != "whole", how == "tiled"
    try:
        yield
    finally:
        vae.use_slicing, vae.use_tiling = before


def to_pictures(pixels: torch.Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in [-1, 1] -> RGB pictures."""
    array = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(np.ascontiguousarray(picture)) for picture in array]
