"""The families of models that can be trained, one file each."""

from __future__ import annotations

from pathlib import Path

import torch

from dreambooth.core.errors import UserError
from dreambooth.core.models.load_overrides import Origin
from dreambooth.engine.checkpoints.source import Source, open_source
from dreambooth.engine.families import sd1, sd2, sdxl
from dreambooth.engine.families.loading import check_room, fill, new_bytes
from dreambooth.engine.families.model import Model

_BUILDERS = {"sd1": sd1.build, "sd2": sd2.build, "sdxl": sdxl.build}


def skeleton(source: Source) -> Model:
    """The model without weights: its parts take no memory. Raises UserError for what cannot be trained from."""
    if source.about.reason:
        raise UserError(f"{source.header.path}: {source.about.reason}.")
    return _BUILDERS[source.about.family](source)


def load(source: Source, dtype: torch.dtype = torch.float32) -> Model:
    """Reads a model onto the CPU: UNet and text encoders in `dtype`, the VAE always in float32.

    Raises UserError for a file that is damaged or cannot be trained from, and where there is no memory for it.
    """
    model = skeleton(source)
    dtypes = {part: torch.float32 if part == "vae" else dtype for part in model.parts}
    check_room(source.header.path, sum(new_bytes(source, part, model.parts[part], dtypes[part]) for part in dtypes))
    for part, module in model.parts.items():
        fill(source, part, module, dtypes[part])
    if source.about.known_by == "assumed" and sd2.seems_to_predict_v(model):
        raise UserError(
            f"{source.header.path}: nothing beside the weights says what this model predicts, and they look like "
            "v-prediction; create the model again with --prediction-type v_prediction (on the page: How to read it, "
            "Prediction Type), or epsilon, if you know better."
        )
    return model


def load_file(path: Path, origin: Origin | None = None, dtype: torch.dtype = torch.float32) -> Model:
    """Opens and reads a file or Diffusers folder."""
    return load(open_source(path, origin), dtype)
