"""What training minimises. Symbols as in DDPM (arXiv 2006.11239): x_0 the picture's latents, x_t the noisy ones,
eps the noise, alpha_bar_t the share of the picture's variance that is left at step t."""

from __future__ import annotations

import torch
from torch import Tensor


def add_noise(x_0: Tensor, eps: Tensor, alpha_bar_t: Tensor) -> Tensor:
    """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps (DDPM, eq. 4). All (B, 4, h, w) but alpha_bar_t (B,)."""
    alpha_bar_t = alpha_bar_t.view(-1, 1, 1, 1)
    return alpha_bar_t.sqrt() * x_0 + (1 - alpha_bar_t).sqrt() * eps


def target(prediction_type: str, x_0: Tensor, eps: Tensor, alpha_bar_t: Tensor) -> Tensor:
    """What the UNet is to predict: the noise (DDPM, equation 14), or
    v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0 (arXiv 2202.00512, section 4)."""
    if prediction_type == "epsilon":
        return eps
    alpha_bar_t = alpha_bar_t.view(-1, 1, 1, 1)
    return alpha_bar_t.sqrt() * eps - (1 - alpha_bar_t).sqrt() * x_0


def squared_error(predicted: Tensor, wanted: Tensor) -> Tensor:
    """The mean squared error of each picture, (B,)."""
    return (predicted.float() - wanted.float()).square().mean((1, 2, 3))


def dreambooth_loss(each: Tensor, instances: int, prior_weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """The loss over a batch whose first `instances` rows are the subject's and whose others are the class's.

    DreamBooth (arXiv 2208.12242, equation 2): the subject's mean plus `prior_weight` times the class's mean.
    Returns the sum and both means; the class's is 0 where there are no class pictures.
    """
    subject = each[:instances].mean()
    prior = each[instances:].mean() if len(each) > instances else torch.zeros_like(subject)
    return subject + prior_weight * prior, subject, prior
