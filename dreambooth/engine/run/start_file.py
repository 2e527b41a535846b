"""The LoRA file and the embedding that training starts from."""

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
    """What training starts from; empty without a file."""

    layers: dict[str, AnyLayer] = field(default_factory=dict)  # of a LoRA, by the weight that each changes
    words: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # learned embeddings, by word and text encoder


def read(settings: Settings, source: Source) -> Start:
    """Reads the files that the settings name. Raises UserError for one that cannot be trained further with them."""
    words = _words(settings, source)
    path = lora_start.check(settings, source.tensors, source.about.family)
    if path is None:
        return Start(words=words)
    layers = lora.read(path, source.tensors, source.about.family)
    return Start(layers, words or words_file.read(checkpoint.read_header(path)))


def _words(settings: Settings, source: Source) -> dict[str, dict[str, Tensor]]:
    """The embeddings of the words that are trained, from the embedding file. If only one is trained, it may have
    another name there."""
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
