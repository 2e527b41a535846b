"""The last touches on a miniature's weights change nothing that is drawn."""

from __future__ import annotations

import pytest
import torch

from dreambooth.engine.miniature import finish
from dreambooth.engine.miniature.model import WHOLE, TextToNoise
from dreambooth.engine.miniature.shapes import SHAPES
from dreambooth.engine.miniature.train_vae import build_vae

PROMPTS = ["", "a red star on a blue background"]


@torch.no_grad()
@pytest.mark.parametrize("family", SHAPES)
def test_the_text_gets_a_mean_and_the_prediction_stays(family: str) -> None:
    torch.manual_seed(0)
    model = TextToNoise(SHAPES[family]).eval()
    noisy, timesteps, sizes = torch.randn(2, 4, 8, 8), torch.tensor([10, 900]), torch.tensor([WHOLE] * 2)
    before = model(noisy, timesteps, PROMPTS, sizes)
    finish.give_text_a_mean(model)
    finish.fill_unused_blocks(model)
    torch.testing.assert_close(model(noisy, timesteps, PROMPTS, sizes), before, rtol=1e-3, atol=1e-4)
    for states in model.encode(PROMPTS)[0].split(model.widths, dim=-1):
        assert (states.mean((1, 2)).abs() > 0.05).all()


@torch.no_grad()
def test_another_factor_gives_the_same_latents_and_pictures() -> None:
    torch.manual_seed(0)
    vae = build_vae().eval()
    pixels = torch.randn(1, 3, 64, 64)
    before = vae.encode(pixels).latent_dist
    decoded = vae.decode(before.mean).sample
    finish.rescale_latents(vae, 0.18215, 0.13025)
    after = vae.encode(pixels).latent_dist
    torch.testing.assert_close(after.mean * 0.13025, before.mean * 0.18215)
    torch.testing.assert_close(after.std * 0.13025, before.std * 0.18215)
    torch.testing.assert_close(vae.decode(after.mean).sample, decoded, rtol=1e-3, atol=1e-4)
