"""The LoRA file that a run goes on from."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from dreambooth.core.models import checkpoint
from dreambooth.core.settings import Settings
from dreambooth.engine.checkpoints import lora, lora_start, words_file
from dreambooth.engine.checkpoints.lora_layers import AnyLayer
from dreambooth.engine.checkpoints.source import Source


@dataclass
class Start:
    """A LoRA's layers by the weight that each changes, and the words that learned with it; empty without a file."""

    layers: dict[str, AnyLayer] = field(default_factory=dict)
    words: dict[str, dict[str, Tensor]] = field(default_factory=dict)


def read(settings: Settings, source: Source) -> Start:
    """Raises UserError for a file that cannot be gone on from with these settings."""
    path = lora_start.check(settings, source.tensors, source.about.family)
    if path is None:
        return Start()
    layers = lora.read(path, source.tensors, source.about.family)
    return Start(layers, words_file.read(checkpoint.read_header(path)))
