"""What training minimises. Symbols as in DDPM (arXiv 2006.11239): x_0 the picture's latents, x_t the noisy ones,
eps the noise, alpha_bar_t the share of the picture's variance that is left at step t."""

from __future__ import annotations

import torch
from torch import Tensor

from dreambooth.core.settings import Settings
from dreambooth.core.settings.objective import TIMESTEPS, Objective

LEAST_SNR = 1e-3  # debiased weights grow without end towards pure noise; below this they stay as they are


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


def error(predicted: Tensor, wanted: Tensor, choice: Objective, alpha_bar_t: Tensor, t: Tensor) -> Tensor:
    """The error of each latent, (B, 4, h, w) in float32, by the chosen loss."""
    difference = predicted.float() - wanted.float()
    if choice.loss == "mse":
        return difference.square()
    return pseudo_huber(difference, huber_delta(choice, alpha_bar_t, t).view(-1, 1, 1, 1))


def pseudo_huber(difference: Tensor, delta: Tensor) -> Tensor:
    """2 delta (sqrt(d^2 + delta^2) - delta): the square of differences well below delta, linear in those well above it.

    It is twice the pseudo-Huber loss of Khrapov et al. 2024 (arXiv 2403.16728), so that a large delta gives the MSE.
    """
    return 2 * delta * ((difference.square() + delta.square()).sqrt() - delta)


def huber_delta(choice: Objective, alpha_bar_t: Tensor, t: Tensor) -> Tensor:
    """delta of each picture, (B,): the setting, or falling to it from 1 at little noise.

    exponential: delta^(t/T) (arXiv 2403.16728); snr: (1 - delta) / (1 + sigma_t)^2 + delta with
    sigma_t^2 = (1 - alpha_bar_t) / alpha_bar_t.
    """
    delta = torch.full_like(alpha_bar_t, choice.huber_delta)
    if choice.huber_schedule == "exponential":
        return delta ** (t / TIMESTEPS)
    if choice.huber_schedule == "snr":
        sigma = ((1 - alpha_bar_t) / alpha_bar_t).sqrt()
        return (1 - delta) / (1 + sigma).square() + delta
    return delta


def picture_means(each: Tensor, mask: Tensor | None, unmasked_weight: float) -> Tensor:
    """The mean error of each picture, (B, 4, h, w) -> (B,).

    With a mask (B, 1, h, w) from 0 to 1 it is a weighted mean, in which what the mask leaves out weighs
    `unmasked_weight`; a small subject thus counts as much as a large one.
    """
    if mask is None:
        return each.mean((1, 2, 3))
    weight = (mask + (1 - mask) * unmasked_weight).expand_as(each)
    return (each * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3))


def timestep_weight(prediction_type: str, choice: Objective, alpha_bar_t: Tensor) -> Tensor:
    """The weight of each picture's error by its timestep as chosen, (B,); finite down to alpha_bar_t = 0.

    SNR = alpha_bar_t / (1 - alpha_bar_t). A squared error of 1 in x_0 is one of SNR in eps and of SNR + 1 in v
    (arXiv 2202.00512, section 4 and appendix D), so a weight w on x_0's is w / SNR on eps and w / (SNR + 1) on v.
    min_snr: w = min(SNR, gamma) (arXiv 2303.09556). debiased: w = 1 is without bias (arXiv 2310.08442), which is
    1 / (SNR + 1) on v; the paper softens it on eps to 1 / sqrt(SNR), as 1 / SNR would span five powers of ten.
    noise: w = SNR, which is what a model of eps has by itself, and alpha_bar_t on v.
    """
    if choice.weighting == "noise":
        return torch.ones_like(alpha_bar_t) if prediction_type == "epsilon" else alpha_bar_t
    snr = alpha_bar_t / (1 - alpha_bar_t)
    if choice.weighting == "min_snr":
        if prediction_type == "epsilon":
            return choice.min_snr_gamma / snr.clamp(min=choice.min_snr_gamma)  # min(snr, gamma) / snr, also at 0
        return snr.clamp(max=choice.min_snr_gamma) / (snr + 1)
    if prediction_type == "epsilon":
        return snr.clamp(min=LEAST_SNR).rsqrt()
    return 1 / (snr + 1)


def prior_weight(settings: Settings, epochs: float) -> float:
    """How much the class's mean counts after so many epochs: the setting, or on its way down to the least."""
    start, choice = settings.tuning.prior_loss_weight, settings.objective
    if not choice.prior_loss_scale:
        return start
    share = min(1.0, epochs / choice.prior_loss_target)
    return start + (choice.prior_loss_weight_min - start) * share


def dreambooth_loss(each: Tensor, instances: int, prior_weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """The loss over a batch whose first `instances` rows are the subject's and whose others are the class's.

    DreamBooth (arXiv 2208.12242, equation 2): the mean over the subject's images of the error of each, plus
    `prior_weight` times that of the class image that goes with it. A concept may have no class images: they count as 0,
    so that those of other concepts count the same whatever they share a batch with. Returns the sum and both means.
    """
    subject = each[:instances].mean()
    prior = each[instances:].sum() / instances
    return subject + prior_weight * prior, subject, prior
