"""How a checkpoint is to be read, where a person knows better than the file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dreambooth.core.schema import setting


@dataclass
class Origin:
    """What is left at auto is found out from the file."""

    family: Literal["auto", "sd1", "sd2", "sdxl"] = setting("auto", "Family", "Which kind of model the file holds.")
    prediction_type: Literal["auto", "epsilon", "v_prediction"] = setting(
        "auto", "Prediction Type", "What the UNet predicts: the noise (epsilon), or v, as SD 2.x at 768 pixels does."
    )
    zero_terminal_snr: Literal["auto", "on", "off"] = setting(
        "auto",
        "Zero Terminal SNR",
        "Whether the model's last timestep is pure noise, as v-prediction models often have.",
    )
    resolution: int = setting(
        0, "Resolution", "The side of the pictures that it was made for, in pixels.", min=0, max=2048
    )
    weights: Literal["normal", "ema"] = setting(
        "normal", "Weights", "The file's normal weights, or the averaged ones (EMA) that some files hold beside them."
    )
    vae: str = setting("", "VAE", "A VAE file or folder to use instead of the checkpoint's own.", path=True)
