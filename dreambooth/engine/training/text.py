"""The text embeddings of a batch: from a table while the text encoders rest, computed while they learn."""

from __future__ import annotations

import torch
from torch import Tensor

from dreambooth.core.memory.footprint import TEXTS_ON_DEVICE
from dreambooth.engine import hardware
from dreambooth.engine.families.model import Model, Text
from dreambooth.engine.layers.resting import adapters, resting

MOST_ON_DEVICE = TEXTS_ON_DEVICE
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
        return _looked_up(self.table, numbers, self.model.device)

    def base_embeddings(self, numbers: Tensor) -> Text:
        """The same from text encoders without their adapters, which may go on learning."""
        if self.base_table is None:
            with resting(adapters(self.model.text_encoders.values())):
                self.base_table = self._all()
        return _looked_up(self.base_table, numbers, self.model.device)

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
        table: Text | None = None
        for start in range(0, len(self.prompts), _BATCH):
            some = self.prompts[start : start + _BATCH]
            text = self.model.encode_texts([some])[0]
            if start <= self.nothing < start + len(some):
                text = self.model.emptied(text, torch.tensor([self.nothing - start], device=text.hidden.device))
            if len(some) == len(self.prompts):
                return text
            table = table or _room(text, len(self.prompts))
            for one, whole in zip(text.tensors, table.tensors):
                whole[start : start + len(one)].copy_(one)
        assert table is not None
        return table


def _room(some: Text, count: int) -> Text:
    """A table for so many prompts that are read like these: where these are, unless that is much."""
    total = count * sum(one[0].nbytes for one in some.tensors)
    place = some.hidden.device if total <= MOST_ON_DEVICE else torch.device("cpu")

    def room(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.new_empty((count, *tensor.shape[1:]), device=place)

    return some.each(room)


def _looked_up(table: Text, numbers: Tensor, device: torch.device) -> Text:
    """Rows of a table, on the device. Out of the computer's memory they come without anybody waiting."""
    found = table[hardware.brought(numbers, table.hidden.device)]
    if table.hidden.device.type == device.type:
        return found
    return found.each(lambda some: None if some is None else hardware.brought(_pinned(some, device), device))


def _pinned(some: Tensor, device: torch.device) -> Tensor:
    return some.pin_memory() if device.type == "cuda" else some
