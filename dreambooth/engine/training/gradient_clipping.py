"""Clipping of gradients, each part of the model by its own norm."""

from __future__ import annotations

import torch
from torch import Tensor

from dreambooth.core.settings.optimization import Optimizer
from dreambooth.engine.training.session import Session


def max_grad_norm(settings: Optimizer, part: str) -> float:
    """The largest norm that the gradients of a part may have; 0 for any."""
    return settings.max_grad_norm if part == "unet" else settings.text_encoder_max_grad_norm


def clip(session: Session) -> Tensor:
    """Scales the gradients of each part down to its largest norm.

    Returns the norms before clipping, (parts,), on the device; 0 for a part without gradients.
    """
    chosen, device = session.settings.optimizer, session.model.device
    session.accelerator.unscale_gradients()
    norms = []
    for part, parameters in session.trained.parts.items():
        gradients = [parameter.grad for parameter in parameters.values() if parameter.grad is not None]
        # PyTorch's norm of no gradients is a zero on the CPU; moving that to the device would wait for it.
        norm = (
            torch.nn.utils.get_total_norm(gradients).float().to(device) if gradients else torch.zeros((), device=device)
        )
        if (most := max_grad_norm(chosen, part)) and gradients:
            torch.nn.utils.clip_grads_with_norm_(parameters.values(), most, norm)
        norms.append(norm)
    return torch.stack(norms)
