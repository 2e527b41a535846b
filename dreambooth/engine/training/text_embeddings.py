"""The text embeddings of a batch: from a table while the text encoders rest, computed while they learn."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dreambooth.core.memory.footprint import TEXTS_ON_DEVICE
from dreambooth.engine import hardware
from dreambooth.engine.families.model import Model
from dreambooth.engine.families.text_encoding import TextEmbedding
from dreambooth.engine.layers.disabled_adapters import adapters, disabled

MOST_ON_DEVICE = TEXTS_ON_DEVICE
_BATCH = 64  # prompts encoded at a time


class Texts:
    """Embeddings of the run's few prompts, by number. The empty prompt is what guidance reads where there is none."""

    def __init__(self, model: Model, prompts: list[str], rests: str = "") -> None:
        """`rests` is the text encoder that does not learn where the other does."""
        self.model = model
        self.prompts = prompts
        self.tokens = [numbers.to(model.device) for numbers in model.tokenize(prompts)]
        weights = model.token_weights(prompts)
        self.weights = None if weights is None else weights.to(model.device)
        self.nothing = prompts.index("") if "" in prompts else -1
        self.table: TextEmbedding | None = None
        self.base_table: TextEmbedding | None = None
        self.rests = rests
        self.buffers = hardware.PinnedBuffers()
        self.rest_table: TextEmbedding | None = None

    def embeddings(self, numbers: Tensor) -> TextEmbedding:
        """(B,) prompt numbers -> what the UNet reads, from a table. It is made once, when the text encoders rest."""
        if self.table is None:
            self.table = self._all()
        return self._looked_up(self.table, numbers)

    def base_embeddings(self, numbers: Tensor) -> TextEmbedding:
        """The same from text encoders without their adapters, which may go on learning."""
        if self.base_table is None:
            with disabled(adapters(self.model.text_encoders.values())):
                self.base_table = self._all()
        return self._looked_up(self.base_table, numbers)

    def at_rest(self, numbers: Tensor) -> TextEmbedding | None:
        """What the text encoder that rests makes of them, from a table; None where none does while the other learns."""
        if not self.rests:
            return None
        if self.rest_table is None:
            self.rest_table = self._table(lambda _, some: self.model.encode_with(self.rests, some))
        return self._looked_up(self.rest_table, numbers)

    def look_up(self, numbers: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(B,) prompt numbers -> their tokens (text encoders, B, pieces x 77), which rows are the empty prompt, and how
        much each token counts (B, pieces x 77) where any of the run's counts more or less."""
        on_device = hardware.brought(numbers, self.model.device)
        emptied = (numbers == self.nothing).nonzero().flatten()
        tokens = torch.stack([some[on_device] for some in self.tokens])
        weights = None if self.weights is None else self.weights[on_device]
        return tokens, hardware.brought(emptied, self.model.device) if len(emptied) else None, weights

    def read(
        self, tokens: Tensor, emptied: Tensor | None, weights: Tensor | None, resting: TextEmbedding | None = None
    ) -> TextEmbedding:
        """What was looked up -> what the UNet reads, for text encoders that learn."""
        known = {} if resting is None else {self.rests: resting}
        for part, encoder in self.model.text_encoders.items():
            encoder.train(part not in known)
        text = self.model.encode_tokens(list(tokens), weights, known)
        return text if emptied is None else self.model.make_unconditional(text, emptied)

    def _looked_up(self, table: TextEmbedding, numbers: Tensor) -> TextEmbedding:
        """Rows of a table, on the device. Out of the computer's memory they come without anybody waiting."""
        device = self.model.device
        if table.hidden.device.type == device.type:
            return table[hardware.brought(numbers, device)]
        return table.map(lambda some: None if some is None else self.buffers.rows_brought(some, numbers, device))

    def _all(self) -> TextEmbedding:
        return self._table(self._whole)

    def _whole(self, start: int, some: list[str]) -> TextEmbedding:
        """What the UNet reads of these prompts, the first of which is the one of that number."""
        text = self.model.encode_texts([some])[0]
        if start <= self.nothing < start + len(some):
            text = self.model.make_unconditional(text, torch.tensor([self.nothing - start], device=text.hidden.device))
        return text

    @torch.no_grad()
    def _table(self, read: Callable[[int, list[str]], TextEmbedding]) -> TextEmbedding:
        """What is read of all prompts, some at a time."""
        for encoder in self.model.text_encoders.values():
            encoder.eval()
        table: TextEmbedding | None = None
        for start in range(0, len(self.prompts), _BATCH):
            some = self.prompts[start : start + _BATCH]
            text = read(start, some)
            if len(some) == len(self.prompts):
                return text
            table = table or _room(text, len(self.prompts))
            for one, whole in zip(text.tensors, table.tensors):
                whole[start : start + len(one)].copy_(one)
        assert table is not None
        return table


def _room(some: TextEmbedding, count: int) -> TextEmbedding:
    """A table for so many prompts that are read like these: where these are, unless that is much."""
    total = count * sum(one[0].nbytes for one in some.tensors)
    place = some.hidden.device if total <= MOST_ON_DEVICE else torch.device("cpu")

    def room(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.new_empty((count, *tensor.shape[1:]), device=place)

    return some.map(room)
