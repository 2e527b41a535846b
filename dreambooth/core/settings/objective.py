"""What training minimises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dreambooth.core.schema import setting

TIMESTEPS = 1000  # that a picture becomes noise in


@dataclass
class Objective:
    """What training minimises."""

    loss: Literal["mse", "huber"] = setting(
        "mse", "Loss", "mse is the squared error; with huber, the pseudo-Huber loss, odd pictures count less."
    )
    huber_delta: float = setting(
        0.1,
        "Huber Delta",
        "Errors well above this count by their size, not by its square.",
        min=0.001,
        max=10,
        advanced=True,
    )
    huber_schedule: Literal["constant", "exponential", "snr"] = setting(
        "snr",
        "Huber Schedule",
        "constant uses delta at all timesteps; the others start with 1 at low noise and fall to delta at high noise.",
        advanced=True,
    )
    weighting: Literal["none", "min_snr", "debiased", "noise"] = setting(
        "none",
        "Timestep Weighting",
        "min_snr lets steps of low noise count less (Min-SNR), and for a v-prediction model also those of high "
        "noise; debiased lets steps of high noise count more; noise weighs a v-prediction model's steps as if it "
        "predicted the noise.",
    )
    min_snr_gamma: float = setting(
        5.0,
        "Min SNR Gamma",
        "With min_snr: steps with a signal-to-noise ratio above this count less; smaller is stronger.",
        min=0.1,
        max=100,
    )
    prior_loss_scale: bool = setting(
        False,
        "Scale Prior Loss",
        "The prior loss weight falls evenly to its minimum, until the epoch of Prior Loss Target.",
    )
    prior_loss_target: int = setting(
        100,
        "Prior Loss Target",
        "The epoch at which the minimum is reached, however long the run is.",
        min=1,
        max=100_000,
    )
    prior_loss_weight_min: float = setting(
        0.1, "Minimum Prior Loss Weight", "What the prior loss weight falls to.", min=0, max=10
    )
    offset_noise: float = setting(
        0.0,
        "Offset Noise",
        "Shifts whole channels of the noise at random, so that darker and brighter pictures can be learned. The "
        "shift goes both ways, so that the sign makes no difference.",
        min=-1,
        max=1,
    )
    multires_noise_levels: int = setting(
        0,
        "Multi-Resolution Noise Levels",
        "Adds this many coarser layers to the noise, for large areas of light and dark; 0 adds none.",
        min=0,
        max=10,
        advanced=True,
    )
    multires_noise_discount: float = setting(
        0.3,
        "Multi-Resolution Noise Discount",
        "How strong each layer is, relative to the one before.",
        min=0.01,
        max=1,
        advanced=True,
    )
    input_perturbation: float = setting(
        0.0,
        "Input Perturbation",
        "Adds this much noise that is not to be predicted, against the errors that sampling adds up; 0.1 is usual.",
        min=0,
        max=1,
        advanced=True,
    )
    timesteps: Literal["uniform", "logit_normal", "cubic"] = setting(
        "uniform",
        "Timestep Sampling",
        "How timesteps are drawn: evenly, mostly in the middle, or mostly at high noise.",
        advanced=True,
    )
    timestep_min: int = setting(
        0, "Lowest Timestep", "Timesteps of less noise are not trained.", min=0, max=TIMESTEPS - 1, advanced=True
    )
    timestep_max: int = setting(
        TIMESTEPS - 1,
        "Highest Timestep",
        "Timesteps of more noise are not trained.",
        min=0,
        max=TIMESTEPS - 1,
        advanced=True,
    )
    logit_mean: float = setting(
        0.0, "Logit-Normal Mean", "Above 0 draws more timesteps of high noise.", min=-5, max=5, advanced=True
    )
    logit_std: float = setting(
        1.0, "Logit-Normal Width", "How widely timesteps are spread around the middle.", min=0.01, max=5, advanced=True
    )
    masked: bool = setting(
        False,
        "Masked Training",
        "White areas of NAME-mask.png (or NAME-masklabel.png) beside a picture, or of masks/NAME.png, count in "
        "full. A picture without such a file takes its transparency, if it has any.",
    )
    unmasked_weight: float = setting(
        0.1, "Unmasked Weight", "How much the rest of a masked picture counts.", min=0, max=1
    )
