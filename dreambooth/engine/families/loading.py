"""Building a model's parts and filling them with a file's weights, without a second copy in memory."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers.initialization import no_init_weights

from dreambooth.core.errors import UserError
from dreambooth.core.formatting import memory
from dreambooth.engine import hardware
from dreambooth.engine.checkpoints import names
from dreambooth.engine.checkpoints.source import DTYPES, Source


@contextlib.contextmanager
def unfilled() -> Iterator[None]:
    """Within it modules are built without weights, and no random numbers are drawn for them."""
    with init_empty_weights(include_buffers=False), no_init_weights():
        yield


def new_bytes(source: Source, part: str, module: nn.Module, dtype: torch.dtype) -> int:
    """How much memory a module's weights take beside the file's own pages, which the system may let go of again."""
    total = 0
    for key, empty in module.state_dict().items():
        tensor = source.tensors.get(f"{part}/{names.canonical_key(part, key)}")
        if tensor is not None and DTYPES[tensor.dtype] != dtype:
            total += empty.numel() * dtype.itemsize
    return total


def check_room(path: Path, needed: int) -> None:
    """Raises UserError where Linux has no memory for so many bytes, nor a place on the disk for what lies there: it
    would end this process, or another one. Other systems make such places as they go."""
    if sys.platform != "linux" or needed <= (free := hardware.available_bytes()):
        return
    if needed > free + hardware.swap_bytes():
        raise UserError(
            f"{path}: to load it takes about {memory(needed)} of the computer's memory, of which {memory(free)} are "
            "free; close other programs that use it."
        )


def fill(source: Source, part: str, module: nn.Module, dtype: torch.dtype) -> None:
    """Gives a module that was built without weights the file's, in `dtype`; nothing in it is to be trained yet.

    Raises UserError if weights are missing, have another shape or are not finite.
    """
    state: dict[str, Tensor] = {}
    for key, empty in module.state_dict().items():
        name = f"{part}/{names.canonical_key(part, key)}"
        place = source.places[name].name if name in source.places else name
        if name not in source.tensors:
            raise UserError(f"{source.header.path}: the weights {name} are missing; the file is damaged.")
        shares = DTYPES[source.tensors[name].dtype] == dtype  # the file's page, until something writes into it
        tensor = source.read(name) if shares else source.copy(name, dtype)
        if tensor.numel() == empty.numel() and tensor.dim() != empty.dim():  # (out, in) and (out, in, 1, 1)
            tensor = tensor.reshape(empty.shape)
        if tensor.shape != empty.shape:
            raise UserError(
                f"{source.header.path}: {place} has the shape {tuple(tensor.shape)} instead of {tuple(empty.shape)}; "
                "this is no plain Stable Diffusion model."
            )
        if not _is_finite(tensor):
            raise UserError(f"{source.header.path}: {place} holds values that are not finite; this model is broken.")
        state[key] = tensor
    module.load_state_dict(state, assign=True)
    module.requires_grad_(False).eval()


def _is_finite(tensor: Tensor) -> bool:
    """Fifteen times as quick as asking for each value: the least and the greatest show any infinity and any NaN."""
    return not tensor.numel() or all(map(math.isfinite, torch.stack(torch.aminmax(tensor)).tolist()))
