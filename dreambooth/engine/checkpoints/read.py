"""Reading a checkpoint's weights into the parts of a model, without a second copy in memory."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from dreambooth.core.errors import UserError
from dreambooth.engine.checkpoints import names


def load_into(path: Path, module: nn.Module, keys: dict[str, str], dtype: torch.dtype) -> None:
    """Fills `module` from the file; `keys` is {the module's key: the file's key}.

    Raises UserError if weights are missing, have another shape or are not finite.
    """
    state: dict[str, Tensor] = {}
    shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    with safe_open(path, framework="pt") as file:
        there = set(file.keys())
        for ours, theirs in keys.items():
            name = theirs if theirs in there else names.clip_alias(theirs)
            if name not in there:
                raise UserError(f"{path}: the weights {theirs} are missing; the file is damaged or of an unknown kind.")
            tensor = file.get_tensor(name).to(dtype)
            if name.endswith(names.VAE_CONVOLUTIONS):
                tensor = tensor.reshape(tensor.shape[:2])
            if tuple(tensor.shape) != shapes[ours]:
                raise UserError(
                    f"{path}: {name} has the shape {tuple(tensor.shape)} instead of {shapes[ours]}; "
                    "this is not a plain Stable Diffusion 1 model."
                )
            if not torch.isfinite(tensor).all():
                raise UserError(f"{path}: {name} holds values that are not finite; this model is broken.")
            state[ours] = tensor
    module.load_state_dict(state, assign=True)
