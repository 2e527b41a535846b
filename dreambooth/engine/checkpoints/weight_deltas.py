"""What a result changed of the model that it was made from, to be added to that or another at any weight, or written as
a LoRA (lora_extraction.py).

A change is known weight by weight and worked out when its turn comes, so that memory holds one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from dreambooth.core.errors import UserError
from dreambooth.engine.checkpoints import lora
from dreambooth.engine.checkpoints.entry import Entry
from dreambooth.engine.checkpoints.lora_layers import AnyLayer
from dreambooth.engine.checkpoints.original import copied
from dreambooth.engine.checkpoints.source import DTYPES, Source

Change = Callable[[Tensor], Tensor]  # from a weight as it was to what is added to it, float32, in its shape
Changes = dict[str, Change]  # by the weights' own names

_FIRST = "unet/conv_in.weight"


def of_lora(file: Path, model: Source) -> Changes:
    """What a LoRA file of any kind changes of a model. Raises UserError if it does not belong to it."""

    def change(name: str, layer: AnyLayer) -> Change:
        lora.fitting_change(file, name, layer, model.read(name))  # so that nothing is written if it does not fit
        return lambda plain: lora.fitting_change(file, name, layer, plain)

    return {name: change(name, layer) for name, layer in lora.read(file, model.tensors, model.about.family).items()}


def of_result(result: Source, base: Source, model: Source) -> Changes:
    """What a checkpoint changed of that which it was trained from, for a model that may be another."""
    shared = [name for name in base.tensors if name in result.tensors]
    return of_weights({name: copied(result, result.tensors[name]) for name in shared}, base, model)


def of_weights(trained: Mapping[str, Entry], base: Source, model: Source) -> Changes:
    """The same of weights that were trained; the VAE never is. Raises UserError if they do not fit the model."""

    def change(name: str, entry: Entry) -> Change:
        _check_size(name, entry.shape, model)
        return lambda plain: _fitted(_difference(base.read(name), entry.get()), plain)

    weights = {name: entry for name, entry in trained.items() if entry.dtype.is_floating_point}
    return {name: change(name, entry) for name, entry in weights.items() if not name.startswith("vae/")}


def added(model: Source, changes: Changes, weight: float) -> dict[str, Entry]:
    """A model's weights with the changes added at a weight."""

    def entry(name: str, change: Change) -> Entry:
        def summed() -> Tensor:
            plain = model.read(name).float()
            return plain + weight * change(plain)

        tensor = model.tensors[name]
        return Entry(DTYPES[tensor.dtype], tuple(tensor.shape), summed)

    return {name: entry(name, change) for name, change in changes.items()}


def _difference(plain: Tensor, trained: Tensor) -> Tensor:
    """float32. What was merely rounded when it was written did not change."""
    if trained.shape == plain.shape and torch.equal(plain.to(trained.device, trained.dtype), trained):
        return torch.zeros(plain.shape)
    return trained.to("cpu", torch.float32) - plain.float()


def _check_size(name: str, shape: tuple[int, ...], model: Source) -> None:
    """Raises UserError if a weight of the model has another size, but for the channels that an inpainting model's first
    convolution takes besides."""
    found = tuple(model.tensors[name].shape) if name in model.tensors else ()
    same_but_channels = len(found) == len(shape) == 4 and (*found[:1], *found[2:]) == (*shape[:1], *shape[2:])
    if found != shape and not (name == _FIRST and same_but_channels):
        raise UserError(
            f"{model.header.path}: its {name} is of another size ({found or 'none'}) than what was trained ({shape}); "
            "name a checkpoint of the same kind."
        )


def _fitted(changed: Tensor, weight: Tensor) -> Tensor:
    """A change for the same weight of a model that takes more channels or fewer, as an inpainting model beside a plain
    one: those that only one of them has stay as they are, or are left out."""
    if changed.shape == weight.shape:
        return changed
    shared = changed[:, : weight.shape[1]]
    more = changed.new_zeros(weight.shape[0], weight.shape[1] - shared.shape[1], *weight.shape[2:])
    return torch.cat([shared, more], 1)
