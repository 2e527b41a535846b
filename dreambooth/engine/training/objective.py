"""The training objective. Symbols as in DDPM (arXiv 2006.11239): x_0 are an image's latents, x_t the noisy ones, eps is
the noise, alpha_bar_t the share of the image's variance that is left at timestep t. B counts the images of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from dreambooth.core.settings import Settings
from dreambooth.core.settings.objective import TIMESTEPS, Objective

LEAST_SNR = 1e-3  # below it the debiased weights, which would grow without bound, stay constant


def add_noise(x_0: Tensor, eps: Tensor, alpha_bar_t: Tensor) -> Tensor:
    """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps (DDPM, eq. 4). All (B, 4, h, w) but alpha_bar_t (B,)."""
    alpha_bar_t = alpha_bar_t.view(-1, 1, 1, 1)
    return alpha_bar_t.sqrt() * x_0 + (1 - alpha_bar_t).sqrt() * eps


def target(prediction_type: str, x_0: Tensor, eps: Tensor, alpha_bar_t: Tensor) -> Tensor:
    """The target of the UNet's prediction, (B, 4, h, w): the noise (DDPM, equation 14), or
    v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0 (arXiv 2202.00512, section 4)."""
    if prediction_type == "epsilon":
        return eps
    alpha_bar_t = alpha_bar_t.view(-1, 1, 1, 1)
    return alpha_bar_t.sqrt() * eps - (1 - alpha_bar_t).sqrt() * x_0


def error(prediction: Tensor, target: Tensor, options: Objective, alpha_bar_t: Tensor, t: Tensor) -> Tensor:
    """The error of each latent, (B, 4, h, w) in float32, by the chosen loss."""
    difference = prediction.float() - target.float()
    if options.loss == "mse":
        return difference.square()
    return pseudo_huber(difference, huber_delta(options, alpha_bar_t, t).view(-1, 1, 1, 1))


def pseudo_huber(difference: Tensor, delta: Tensor) -> Tensor:
    """2 delta (sqrt(d^2 + delta^2) - delta): the square of differences well below delta, linear in those well above it.

    It is twice the pseudo-Huber loss of Khrapov et al. 2024 (arXiv 2403.16728), so that a large delta gives the MSE.
    """
    return 2 * delta * ((difference.square() + delta.square()).sqrt() - delta)


def huber_delta(options: Objective, alpha_bar_t: Tensor, t: Tensor) -> Tensor:
    """delta of each image, (B,): the setting, or falling to it from 1 at little noise.

    exponential: delta^(t/T) (arXiv 2403.16728); snr: (1 - delta) / (1 + sigma_t)^2 + delta with
    sigma_t^2 = (1 - alpha_bar_t) / alpha_bar_t.
    """
    delta = torch.full_like(alpha_bar_t, options.huber_delta)
    if options.huber_schedule == "exponential":
        return delta ** (t / TIMESTEPS)
    if options.huber_schedule == "snr":
        sigma = ((1 - alpha_bar_t) / alpha_bar_t).sqrt()
        return (1 - delta) / (1 + sigma).square() + delta
    return delta


def image_means(error: Tensor, mask: Tensor | None, unmasked_weight: float) -> Tensor:
    """The mean error of each image, (B, 4, h, w) -> (B,).

    With a mask (B, 1, h, w) from 0 to 1 it is a weighted mean, in which what the mask leaves out weighs
    `unmasked_weight`; a small subject thus counts as much as a large one.
    """
    if mask is None:
        return error.mean((1, 2, 3))
    weight = (mask + (1 - mask) * unmasked_weight).expand_as(error)
    return (error * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3))


def timestep_weight(prediction_type: str, options: Objective, alpha_bar_t: Tensor) -> Tensor:
    """The weight of each image's error by its timestep, (B,); finite down to alpha_bar_t = 0.

    SNR = alpha_bar_t / (1 - alpha_bar_t). A squared error of 1 in x_0 is one of SNR in eps and of SNR + 1 in v
    (arXiv 2202.00512, section 4 and appendix D), so a weight w on x_0's is w / SNR on eps and w / (SNR + 1) on v.
    min_snr: w = min(SNR, gamma) (arXiv 2303.09556). debiased: w = 1 is without bias (arXiv 2310.08442), which is
    1 / (SNR + 1) on v; the paper softens it on eps to 1 / sqrt(SNR), as 1 / SNR would span five powers of ten.
    noise: w = SNR, which is what a model of eps has by itself, and alpha_bar_t on v.
    """
    if options.weighting == "noise":
        return torch.ones_like(alpha_bar_t) if prediction_type == "epsilon" else alpha_bar_t
    snr = alpha_bar_t / (1 - alpha_bar_t)
    if options.weighting == "min_snr":
        if prediction_type == "epsilon":
            return options.min_snr_gamma / snr.clamp(min=options.min_snr_gamma)  # min(snr, gamma) / snr, also at 0
        return snr.clamp(max=options.min_snr_gamma) / (snr + 1)
    if prediction_type == "epsilon":
        return snr.clamp(min=LEAST_SNR).rsqrt()
    return 1 / (snr + 1)


def prior_weight(settings: Settings, epochs: float) -> float:
    """The weight of the class's loss after `epochs` epochs: the setting or, with prior_loss_scale, a straight
    line from it down to prior_loss_weight_min, which is reached after prior_loss_target epochs."""
    start, options = settings.tuning.prior_loss_weight, settings.objective
    if not options.prior_loss_scale:
        return start
    progress = min(1.0, epochs / options.prior_loss_target)
    return start + (options.prior_loss_weight_min - start) * progress


def dreambooth_loss(per_image: Tensor, instances: int, prior_weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of a batch from the loss of each image, (B,): the first `instances` images are the subject's, the others
    the class's.

    DreamBooth (arXiv 2208.12242, equation 2): the mean over the subject's images of the error of each, plus
    `prior_weight` times that of the class image that goes with it. A concept may have no class images: they count as 0,
    so that those of other concepts count the same whatever they share a batch with. Returns the sum and both means.
    """
    subject = per_image[:instances].mean()
    prior = per_image[instances:].sum() / instances
    return subject + prior_weight * prior, subject, prior
