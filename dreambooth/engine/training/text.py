"""The text embeddings of a batch: from a table while the text encoder rests, computed while it learns."""

from __future__ import annotations

import torch
from torch import Tensor

from dreambooth.engine.families.sd1 import Sd1


class Texts:
    """Embeddings of the run's few prompts, by number."""

    def __init__(self, model: Sd1, prompts: list[str]) -> None:
        self.model = model
        self.prompts = prompts
        self.tokens = model.tokenize(prompts).to(model.device)
        self.table: Tensor | None = None

    def embeddings(self, numbers: Tensor, *, learning: bool) -> Tensor:
        """(B,) prompt numbers -> (B, 77, width). The table is made when the text encoder has stopped learning."""
        numbers = numbers.to(self.tokens.device)
        self.model.text_encoder.train(learning)
        if learning:
            return self.model.text_encoder(self.tokens[numbers]).last_hidden_state
        if self.table is None:
            with torch.no_grad():
                self.table = self.model.encode_text(self.prompts)
        return self.table[numbers]
