"""Whether a result differs from what training began with. One that does not is a file like any other, and nobody would
know: with a rate of 0, with all steps left out, or with a change that half precision rounds away."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dreambooth.core.settings import Settings
from dreambooth.engine.checkpoints import lora, original
from dreambooth.engine.checkpoints.entry import Entry
from dreambooth.engine.checkpoints.source import Files, Source
from dreambooth.engine.families.model import Model
from dreambooth.engine.run import outputs
from dreambooth.engine.training.adapters import Trained

_BESIDE = ("alpha", "dora_scale")  # of a LoRA's layer, whose change is the product of all others


def is_changed(settings: Settings, model: Model, source: Source, trained: Trained) -> bool:
    """Whether anything differs as it is written. Words that learn, and a LoRA that goes on from another, always do.

    A result that does is known by its first tensors; of one that does not, all are read.
    """
    if settings.is_embedding or settings.embedding.enabled or settings.lora.start_file.strip():
        return True
    half = settings.saving.half_model
    if settings.is_lora:
        return changes_anything(lora.lora_tensors(model.parts, model.family, half=half))
    if not source.files.are_where_they_were():
        return True  # nobody can look any more
    files = Files()  # the source's own are the model's weights, where these are of the same precision
    for name, entry in outputs.changed(trained).items():
        written = original.halved(entry) if half else entry
        if name not in source.tensors or _differs(written, files.read(source.tensors[name])):
            return True
    return False


def changes_anything(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a LoRA's file has a layer that is not nothing, as it is where one of its factors is."""
    factors: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, what = name.partition(".")
        if what not in _BESIDE:
            factors.setdefault(layer, []).append(tensor)
    return any(all(bool(one.any()) for one in some) for some in factors.values())


def _differs(entry: Entry, before: Tensor) -> bool:
    return not torch.equal(entry.get().to("cpu", entry.dtype), before.to(entry.dtype))
