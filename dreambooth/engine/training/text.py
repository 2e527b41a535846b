"""The text embeddings of a batch: from a table while the text encoders rest, computed while they learn."""

from __future__ import annotations

import torch
from torch import Tensor

from dreambooth.engine import hardware
from dreambooth.engine.families.model import Model, Text
from dreambooth.engine.layers.resting import adapters, resting

_BATCH = 64  # prompts encoded at a time


class Texts:
    """Embeddings of the run's few prompts, by number. The empty prompt is what guidance reads where there is none."""

    def __init__(self, model: Model, prompts: list[str]) -> None:
        self.model = model
        self.prompts = prompts
        self.tokens = [numbers.to(model.device) for numbers in model.tokenize(prompts)]
        self.nothing = prompts.index("") if "" in prompts else -1
        self.table: Text | None = None
        self.base_table: Text | None = None

    def embeddings(self, numbers: Tensor) -> Text:
        """(B,) prompt numbers -> what the UNet reads, from a table. It is made once, when the text encoders rest."""
        if self.table is None:
            self.table = self._all()
        return self.table[hardware.brought(numbers, self.model.device)]

    def base_embeddings(self, numbers: Tensor) -> Text:
        """The same from text encoders without their adapters, which may go on learning."""
        if self.base_table is None:
            with resting(adapters(self.model.text_encoders.values())):
                self.base_table = self._all()
        return self.base_table[hardware.brought(numbers, self.model.device)]

    def look_up(self, numbers: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B,) prompt numbers -> their tokens (text encoders, B, pieces x 77), and which rows are the empty prompt."""
        on_device = hardware.brought(numbers, self.model.device)
        emptied = (numbers == self.nothing).nonzero().flatten()
        tokens = torch.stack([some[on_device] for some in self.tokens])
        return tokens, hardware.brought(emptied, self.model.device) if len(emptied) else None

    def read(self, tokens: Tensor, emptied: Tensor | None) -> Text:
        """What was looked up -> what the UNet reads, for text encoders that learn."""
        for encoder in self.model.text_encoders.values():
            encoder.train()
        text = self.model.encode_tokens(list(tokens))
        return text if emptied is None else self.model.emptied(text, emptied)

    @torch.no_grad()
    def _all(self) -> Text:
        for encoder in self.model.text_encoders.values():
            encoder.eval()
        parts = [self.prompts[n : n + _BATCH] for n in range(0, len(self.prompts), _BATCH)]
        text = Text.cat(self.model.encode_texts(parts))
        if self.nothing < 0:
            return text
        return self.model.emptied(text, torch.tensor([self.nothing], device=text.hidden.device))
