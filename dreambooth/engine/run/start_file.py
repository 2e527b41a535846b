"""The LoRA file that a run goes on from."""

from __future__ import annotations

from dreambooth.core.settings import Settings
from dreambooth.engine.checkpoints import lora, lora_start
from dreambooth.engine.checkpoints.lora_layers import AnyLayer
from dreambooth.engine.checkpoints.source import Source


def layers(settings: Settings, source: Source) -> dict[str, AnyLayer]:
    """The layers by the weight that each changes; empty where there is no file.

    Raises UserError for a file that cannot be gone on from with these settings.
    """
    path = lora_start.check(settings, source.tensors, source.about.family)
    return lora.read(path, source.tensors, source.about.family) if path else {}
