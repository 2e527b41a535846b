"""The noise and the timesteps of a batch. All draws come from torch's generators, which the loop seeds from the
position, so that a resumed run draws the same."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from dreambooth.core.settings.objective import Objective


def shaped(eps: Tensor, options: Objective) -> Tensor:
    """White noise (B, 4, h, w) with what the settings add to it: multi-resolution and offset noise."""
    if options.multires_noise_levels:
        eps = multi_resolution(eps, options.multires_noise_levels, options.multires_noise_discount)
    return offset(eps, options.offset_noise) if options.offset_noise else eps


def perturbed(eps: Tensor, strength: float) -> Tensor:
    """eps + strength * xi: what the latents are mixed with where the UNet is still to predict eps.

    Input perturbation (Ning et al. 2023, arXiv 2301.11706, algorithm 1).
    """
    return eps + strength * torch.randn_like(eps) if strength else eps


def offset(eps: Tensor, strength: float) -> Tensor:
    """eps + strength * z, one z ~ N(0, 1) for each channel of each picture (Guttenberg 2023, "Diffusion with offset
    noise"). z goes both ways, so that a negative strength draws from the same distribution as a positive one."""
    return eps + strength * torch.randn((*eps.shape[:2], 1, 1), device=eps.device, dtype=eps.dtype)


def multi_resolution(eps: Tensor, levels: int, discount: float) -> Tensor:
    """eps plus discount^n of noise drawn 2 to 4 times coarser at each level n, of standard deviation 1 in each picture
    (Whitaker 2023, "Multi-resolution noise for diffusion model training").

    Level 0 is as fine as eps and adds to it in full, as it does there: other numbers would mean the same nowhere else.
    """
    height, width = eps.shape[2:]
    total = eps + torch.randn_like(eps)
    factor = 1.0  # how many times coarser than the latents
    for level in range(1, levels + 1):
        factor *= 2 + 2 * float(torch.rand(()))  # on the CPU: sizes must be known here
        size = (max(1, int(height / factor)), max(1, int(width / factor)))
        coarse = torch.randn((*eps.shape[:2], *size), device=eps.device, dtype=eps.dtype)
        total += discount**level * interpolate(coarse, (height, width), mode="bilinear")
        if min(size) == 1:
            break
    return total / total.std((1, 2, 3), keepdim=True)


def timesteps(count: int, options: Objective, device: torch.device) -> Tensor:
    """The timesteps of a batch, (B,) int64, from timestep_min to timestep_max, both within.

    Only how often each is drawn depends on the setting: the loss is not weighted to make up for that.
    logit_normal: sigmoid of N(mean, std) (Esser et al. 2024, arXiv 2403.03206, section 3.1); cubic: 1 - u^3
    (T2I-Adapter, arXiv 2302.08453), which draws noisy steps more often.
    """
    low, high = options.timestep_min, options.timestep_max
    if options.timesteps == "uniform":
        return torch.randint(low, high + 1, (count,), device=device)
    if options.timesteps == "logit_normal":
        fraction = torch.sigmoid(options.logit_mean + options.logit_std * torch.randn(count, device=device))
    else:
        fraction = 1 - torch.rand(count, device=device) ** 3
    return (low + (fraction * (high - low + 1)).long()).clamp(max=high)
