"""The text embeddings of a batch: from a table while the text encoders are frozen, computed while they are trained."""

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
    """The embeddings of a run's prompts, by the prompts' numbers. The empty prompt has the family's unconditional
    embedding."""

    def __init__(self, model: Model, prompts: list[str], frozen_part: str = "") -> None:
        """`frozen_part` is the text encoder that is frozen where only the other one is trained; else it is empty."""
        self.model = model
        self.prompts = prompts
        self.tokens = [token_ids.to(model.device) for token_ids in model.tokenize(prompts)]
        weights = model.token_weights(prompts)
        self.weights = None if weights is None else weights.to(model.device)
        self.empty_prompt = prompts.index("") if "" in prompts else -1  # its number
        self.frozen_part = frozen_part
        self.buffers = hardware.PinnedBuffers()
        self.table: TextEmbedding | None = None
        self.base_table: TextEmbedding | None = None
        self.frozen_table: TextEmbedding | None = None

    def embeddings(self, numbers: Tensor) -> TextEmbedding:
        """(B,) prompt numbers -> what the UNet reads, from a table. This is built at the first call, after which the
        text encoders must not change."""
        if self.table is None:
            self.table = self._build_table(self._encode_prompts)
        return self._rows(self.table, numbers)

    def base_embeddings(self, numbers: Tensor) -> TextEmbedding:
        """The same from text encoders without their adapters, which may be trained further."""
        if self.base_table is None:
            with disabled(adapters(self.model.text_encoders.values())):
                self.base_table = self._build_table(self._encode_prompts)
        return self._rows(self.base_table, numbers)

    def frozen_outputs(self, numbers: Tensor) -> TextEmbedding | None:
        """(B,) prompt numbers -> the outputs of the frozen text encoder, from a table; None without `frozen_part`."""
        if not self.frozen_part:
            return None
        if self.frozen_table is None:
            self.frozen_table = self._build_table(lambda _, some: self.model.encode_with(self.frozen_part, some))
        return self._rows(self.frozen_table, numbers)

    def look_up(self, numbers: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(B,) prompt numbers -> their token ids (text encoders, B, chunks x 77); the numbers of the rows that have the
        empty prompt, if any; and the weight of each token (B, chunks x 77), if any prompt of the run has emphasis."""
        on_device = hardware.brought(numbers, self.model.device)
        empty_rows = (numbers == self.empty_prompt).nonzero().flatten()
        tokens = torch.stack([token_ids[on_device] for token_ids in self.tokens])
        weights = None if self.weights is None else self.weights[on_device]
        return tokens, hardware.brought(empty_rows, self.model.device) if len(empty_rows) else None, weights

    def encode(
        self, tokens: Tensor, empty_rows: Tensor | None, weights: Tensor | None, frozen: TextEmbedding | None = None
    ) -> TextEmbedding:
        """What `look_up` and `frozen_outputs` returned -> what the UNet reads, from text encoders in training mode."""
        encoded = {} if frozen is None else {self.frozen_part: frozen}
        for part, encoder in self.model.text_encoders.items():
            encoder.train(part not in encoded)
        text = self.model.encode_tokens(list(tokens), weights, encoded)
        return text if empty_rows is None else self.model.make_unconditional(text, empty_rows)

    def _rows(self, table: TextEmbedding, numbers: Tensor) -> TextEmbedding:
        """Rows of a table, on the device. From the computer's memory they are copied without waiting for the device."""
        device = self.model.device
        if table.hidden.device.type == device.type:
            return table[hardware.brought(numbers, device)]
        return table.map(lambda some: None if some is None else self.buffers.rows_brought(some, numbers, device))

    def _encode_prompts(self, start: int, prompts: list[str]) -> TextEmbedding:
        """What the UNet reads of some prompts, the first of which has the number `start`."""
        text = self.model.encode_texts([prompts])[0]
        if start <= self.empty_prompt < start + len(prompts):
            rows = torch.tensor([self.empty_prompt - start], device=text.hidden.device)
            text = self.model.make_unconditional(text, rows)
        return text

    @torch.no_grad()
    def _build_table(self, encode: Callable[[int, list[str]], TextEmbedding]) -> TextEmbedding:
        """The embeddings of all prompts, encoded some at a time in evaluation mode."""
        for encoder in self.model.text_encoders.values():
            encoder.eval()
        table: TextEmbedding | None = None
        for start in range(0, len(self.prompts), _BATCH):
            prompts = self.prompts[start : start + _BATCH]
            text = encode(start, prompts)
            if len(prompts) == len(self.prompts):
                return text
            table = table or _allocate(text, len(self.prompts))
            for rows, whole in zip(text.tensors, table.tensors):
                whole[start : start + len(rows)].copy_(rows)
        assert table is not None
        return table


def _allocate(like: TextEmbedding, count: int) -> TextEmbedding:
    """An empty table for `count` prompts whose embeddings have these shapes: on their device, or in the computer's
    memory if it is large."""
    total = count * sum(one[0].nbytes for one in like.tensors)
    device = like.hidden.device if total <= MOST_ON_DEVICE else torch.device("cpu")

    def empty(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.new_empty((count, *tensor.shape[1:]), device=device)

    return like.map(empty)
