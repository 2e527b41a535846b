"""Clipping of gradients, each part of the model by its own norm."""

from __future__ import annotations

import torch
from torch import Tensor

from dreambooth.engine.training.session import Session


def clip(session: Session) -> Tensor:
    """Shortens each part's gradients to the norm that its setting allows, of a LoRA as well.

    Returns their norms as they were, (parts,), on the device; 0 where a part rests.
    """
    chosen, device = session.settings.optimizer, session.model.device
    session.accelerator.unscale_gradients()
    norms = []
    for part, parameters in session.trained.parts.items():
        found = [parameter.grad for parameter in parameters.values() if parameter.grad is not None]
        # Of nothing it would be a zero in the computer's memory, for whose way to the device everybody waits.
        norm = torch.nn.utils.get_total_norm(found).float().to(device) if found else torch.zeros((), device=device)
        most = chosen.max_grad_norm if part == "unet" else chosen.text_encoder_max_grad_norm
        if most and found:
            torch.nn.utils.clip_grads_with_norm_(parameters.values(), most, norm)
        norms.append(norm)
    return torch.stack(norms)
