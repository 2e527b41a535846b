"""The optimizer and its parameter groups: the UNet's first, then each text encoder's."""

from __future__ import annotations

import torch

from dreambooth.core.settings import Settings, learning_rates
from dreambooth.engine.training.adapters import Trained


def make(trained: Trained, settings: Settings) -> torch.optim.Optimizer:
    """AdamW over the groups, each with its own learning rate."""
    rates = learning_rates(settings)
    groups = [
        {"params": list(parameters.values()), "lr": rates[0] if part == "unet" else rates[1]}
        for part, parameters in trained.parts.items()
    ]
    return torch.optim.AdamW(groups, weight_decay=settings.tuning.weight_decay, fused=True)
