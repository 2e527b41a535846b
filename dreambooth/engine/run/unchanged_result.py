"""Whether a result differs from what training began with. It may not, and nothing else would show that: with a learning
rate of 0, if all steps were skipped, or if half precision rounds the changes away."""

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
    """Whether the result differs as it is written. Embeddings, and a LoRA that was trained further, always count as
    changed.

    The first tensor that differs settles it; of an unchanged result all are read.
    """
    if settings.is_embedding or settings.embedding.enabled or settings.lora.start_file.strip():
        return True
    half = settings.saving.half_model
    if settings.is_lora:
        return changes_anything(lora.lora_tensors(model.parts, model.family, half=half))
    if not source.files.are_where_they_were():
        return True  # it cannot be compared any more
    files = Files()  # the source's own are the model's weights, where these are of the same precision
    for name, entry in outputs.changed(trained).items():
        written = original.halved(entry) if half else entry
        if name not in source.tensors or _differs(written, files.read(source.tensors[name])):
            return True
    return False


def changes_anything(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a LoRA has a layer whose product is not zero; it is zero if one of its factors is."""
    factors: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, part = name.partition(".")
        if part not in _BESIDE:
            factors.setdefault(layer, []).append(tensor)
    return any(all(bool(factor.any()) for factor in layer) for layer in factors.values())


def _differs(entry: Entry, before: Tensor) -> bool:
    return not torch.equal(entry.get().to("cpu", entry.dtype), before.to(entry.dtype))
