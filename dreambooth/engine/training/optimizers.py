"""The optimizer and its parameter groups: the UNet's first, the text encoder's second."""

from __future__ import annotations

import torch

from dreambooth.core.settings import Settings, learning_rates
from dreambooth.engine.training.adapters import Trained


def make(trained: Trained, settings: Settings) -> torch.optim.Optimizer:
    """AdamW over the groups, each with its own learning rate."""
    groups = [
        {"params": list(part.values()), "lr": rate}
        for part, rate in zip((trained.unet, trained.text_encoder), learning_rates(settings))
        if part
    ]
    return torch.optim.AdamW(groups, weight_decay=settings.tuning.weight_decay, fused=True)
