"""How many pictures are drawn together where nobody has said: as many as the device has room for and is quicker with.

On a card that is worked out from what is free at that moment, so that it is right beside a training too.
"""

from __future__ import annotations

import torch

from dreambooth.core.errors import Problem
from dreambooth.core.job_folder import Job
from dreambooth.core.memory.drawing_memory import Drawing, most_together
from dreambooth.engine import hardware
from dreambooth.engine.drawing.sampling_choice import Sampling
from dreambooth.engine.families import unet_weights
from dreambooth.engine.families.model import Model


def choose(model: Model, sampling: Sampling, count: int, decoding: str, *, set_to: int = 0, before: int = 0) -> int:
    """How many of `count` pictures to draw together: what somebody has set, where it is not 0. `decoding` is
    memory.vae_decoding; `before` is how many were, where this goes on (see Drawing.fitting)."""
    if set_to:
        return set_to
    device, area = model.device, sampling.width * sampling.height
    if model.anatomy is None:
        return 1
    drawing = Drawing(
        model.anatomy,
        model.family,
        how(model),
        area,
        sampling.guidance_scale > 1,
        decoding,
        _fetched(model),
        _kept(model),
    )
    most = most_together(area, on_card=device.type != "cpu")
    return drawing.fitting(hardware.free_bytes(device), count, most, before)


def in_tiles(job: Job) -> str:
    """How pictures are decoded from now on where there was too little memory for one of them; says so."""
    sentence = "The memory was not enough for a whole picture; from here on they are decoded in overlapping tiles."
    job.warn(Problem(sentence, "memory.vae_decoding", "Set it to tiled to have it so from the beginning."))
    return "tiled"


def how(model: Model) -> str:
    """How the UNet computes while it draws, in the words of `core.counted.prediction`."""
    within = torch.is_autocast_enabled(model.device.type)
    if model.unet.dtype != torch.float32:
        return "half/autocast" if within else "half"
    return "mixed" if within or model.drawn_in not in (None, torch.float32) else "no"


def _fetched(model: Model) -> int:
    """Bytes of the weights of a block and the middle one that lie elsewhere or smaller between two uses."""
    assert model.anatomy is not None
    return 2 * 4 * model.anatomy.largest_block if unet_weights.has_stored_weights(model.unet) else 0


def _kept(model: Model) -> int:
    """Bytes that autocast keeps in half precision of weights that are trained in full."""
    if how(model) != "mixed":
        return 0
    trained = (weight for weight in model.unet.parameters() if weight.requires_grad)
    return 2 * sum(weight.numel() for weight in trained if weight.dtype == torch.float32)
