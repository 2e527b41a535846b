"""The LoRA file and the embedding that a run goes on from."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from dreambooth.core import learned_words as words_module
from dreambooth.core.models import checkpoint
from dreambooth.core.settings import Settings
from dreambooth.engine.checkpoints import embedding_start, lora, lora_start, words_file
from dreambooth.engine.checkpoints.lora_layers import AnyLayer
from dreambooth.engine.checkpoints.source import Source


@dataclass
class Start:
    """A LoRA's layers by the weight that each changes, and words that have learned with it or alone; empty without a
    file."""

    layers: dict[str, AnyLayer] = field(default_factory=dict)
    words: dict[str, dict[str, Tensor]] = field(default_factory=dict)


def read(settings: Settings, source: Source) -> Start:
    """Raises UserError for a file that cannot be gone on from with these settings."""
    words = _words(settings, source)
    path = lora_start.check(settings, source.tensors, source.about.family)
    if path is None:
        return Start(words=words)
    layers = lora.read(path, source.tensors, source.about.family)
    return Start(layers, words or words_file.read(checkpoint.read_header(path)))


def _words(settings: Settings, source: Source) -> dict[str, dict[str, Tensor]]:
    """What an embedding holds of the words that learn; one that is called otherwise is meant by the only word."""
    path = embedding_start.check(settings, source.header)
    if path is None:
        return {}
    header = checkpoint.read_header(path)
    found, learning = words_file.read(header), settings.words
    if len(learning) == 1 and learning[0] not in found:
        own = next(
            (word for word, name in words_module.names(path, header.metadata).items() if name == path.stem), path.stem
        )
        return {learning[0]: found[own]}
    return found
