"""Last touches on trained weights, none of which changes what is drawn: what the formats and the WebUIs expect."""

from __future__ import annotations

import math
import random

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from dreambooth.engine.miniature import world
from dreambooth.engine.miniature.model import TextToNoise
from dreambooth.engine.miniature.shapes import OPEN_CLIP_PAD, Shape

TEXT_PARTS = ("text_encoder", "text_encoder_2")

_MEAN = 0.1  # at least, of every prompt; WebUIs' pictures turn black near zero


@torch.no_grad()
def give_text_a_mean(model: TextToNoise) -> None:
    """Moves the text encoders' output off zero without changing what the model draws.

    WebUIs scale prompts by the mean of this output and divide by it. A shift that all tokens share adds the same to
    every key, which the softmax ignores, and a constant to every value, which the output's bias takes back. A norm
    that follows takes out what all channels share, so the shift can be given before the last block, too.
    """
    rng = random.Random(3)
    context, _ = model.encode(["", *(world.caption(world.random_scene(rng), rng) for _ in range(63))])
    shifts = []
    for text, encoder, states in zip(model.shape.text, model.text_encoders, context.split(model.widths, dim=-1)):
        body = getattr(encoder, "text_model", encoder)
        bias = body.encoder.layers[-2].mlp.fc2.bias if text.penultimate else body.final_layer_norm.bias
        means = states.mean((1, 2))
        amount = _MEAN - means.min() if means.mean() > 0 else -_MEAN - means.max()
        shift = torch.full_like(bias, amount.item())
        bias += shift
        shifts.append(shift)
    _take_back(model, torch.cat(shifts))


def _take_back(model: TextToNoise, shift: Tensor) -> None:
    for name, module in model.unet.named_modules():
        if name.endswith("attn2"):
            output = module.to_out[0]
            output.bias -= output.weight @ (module.to_v.weight @ shift)


@torch.no_grad()
def fill_unused_blocks(model: TextToNoise) -> None:
    """A last text block that nobody runs becomes a copy of the one before it."""
    for text, encoder in zip(model.shape.text, model.text_encoders):
        if text.penultimate and not text.pooled:
            layers = getattr(encoder, "text_model", encoder).encoder.layers
            layers[-1].load_state_dict(layers[-2].state_dict())


def unread_tensors(shape: Shape) -> dict[str, Tensor]:
    """{part/key: tensor} of what OpenCLIP's files hold to compare texts with pictures, and nobody reads here."""
    tensors = {}
    for part, text in zip(TEXT_PARTS, shape.text):
        if text.pad_token == OPEN_CLIP_PAD:
            tensors[f"{part}/logit_scale"] = torch.tensor(math.log(100))
            if not text.pooled:
                tensors[f"{part}/text_projection.weight"] = torch.eye(text.width)
    return tensors


@torch.no_grad()
def rescale_latents(vae: AutoencoderKL, before: float, after: float) -> None:
    """The same latents under another scaling factor: the 1x1 convolutions around them take the difference."""
    ratio = before / after
    half = len(vae.quant_conv.bias) // 2
    vae.quant_conv.weight[:half] *= ratio
    vae.quant_conv.bias[:half] *= ratio
    vae.quant_conv.bias[half:] += 2 * math.log(ratio)  # log variance
    vae.post_quant_conv.weight /= ratio
