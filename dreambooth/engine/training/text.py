"""The text embeddings of a batch: from a table while the text encoders rest, computed while they learn."""

from __future__ import annotations

import torch
from torch import Tensor

from dreambooth.engine.families.model import Model, Text


class Texts:
    """Embeddings of the run's few prompts, by number."""

    def __init__(self, model: Model, prompts: list[str]) -> None:
        self.model = model
        self.prompts = prompts
        self.tokens = [numbers.to(model.device) for numbers in model.tokenize(prompts)]
        self.table: Text | None = None

    def embeddings(self, numbers: Tensor, *, learning: bool) -> Text:
        """(B,) prompt numbers -> what the UNet reads. The table is made once the text encoders rest."""
        numbers = numbers.to(self.model.device)
        for encoder in self.model.text_encoders.values():
            encoder.train(learning)
        if learning:
            return self.model.encode_tokens([tokens[numbers] for tokens in self.tokens])
        if self.table is None:
            with torch.no_grad():
                self.table = self.model.encode_text(self.prompts)
        return self.table[numbers]
