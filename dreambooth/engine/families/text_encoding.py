"""How a model reads prompts: its text encoders with their tokenizers, and the words that have learned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from dreambooth.core import emphasis
from dreambooth.core.errors import UserError
from dreambooth.engine import compatibility, hardware
from dreambooth.engine.families.offload import Offloader
from dreambooth.engine.prompts import chunking, textual_inversion, token_chunks
from dreambooth.engine.prompts.textual_inversion import LearnedTokens
from dreambooth.engine.prompts.token_chunks import PIECE


@dataclass
class TextEmbedding:
    """Prompts as the UNet reads them: hidden states (B, pieces x 77, width), and the pooled text (B, width) of SDXL.

    `mask` (B, pieces x 77) is true for what is read; None where everything is, padding too.
    """

    hidden: Tensor
    pooled: Tensor | None = None
    mask: Tensor | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """Those that are there."""
        return [one for one in (self.hidden, self.pooled, self.mask) if one is not None]

    def each(self, made: Callable[[Tensor | None], Any]) -> TextEmbedding:
        """The same of what is made of each, of None too."""
        return TextEmbedding(made(self.hidden), made(self.pooled), made(self.mask))

    def __getitem__(self, index: Any) -> TextEmbedding:
        return self.each(lambda some: None if some is None else some[index])

    def to(self, dtype: torch.dtype) -> TextEmbedding:
        return TextEmbedding(self.hidden.to(dtype), None if self.pooled is None else self.pooled.to(dtype), self.mask)

    @staticmethod
    def cat(texts: Sequence[TextEmbedding]) -> TextEmbedding:
        pooled = [text.pooled for text in texts if text.pooled is not None]
        masks = [text.mask for text in texts if text.mask is not None]
        return TextEmbedding(
            torch.cat([text.hidden for text in texts]),
            torch.cat(pooled) if pooled else None,
            torch.cat(masks) if masks else None,
        )


@dataclass
class TextEncoding(ABC):
    """The part of a model that reads. A family says what its text encoders make of tokens."""

    text_encoders: dict[str, CLIPTextModel]  # by part: text_encoder, and text_encoder_2 where there are two
    tokenizers: dict[str, CLIPTokenizer]
    _: KW_ONLY
    pieces: int = 1  # of 75 tokens, that a prompt is read in
    clip_skip: int = 1
    pad_tokens: bool = True
    weighted: bool = False  # whether prompts weigh words, as (word:1.2)
    words: dict[str, int] = field(default_factory=dict)  # those that have learned, and of how many vectors each is
    aside: Offloader = field(default_factory=Offloader)  # what is on the device only while it is used

    family: ClassVar[str]

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where it works."""

    def present(self, *names: str) -> AbstractContextManager[None]:
        """Within it these parts stay on the device."""
        return self.aside.present(names, self.device)

    def read_prompts(
        self, max_token_length: int, clip_skip: int, pad_tokens: bool = True, *, weighted: bool = False
    ) -> None:
        """Sets how prompts are read from now on: in pieces of 75 tokens, up to so many tokens in all; at the text
        encoder's last block but `clip_skip` - 1; with the padding or without; with the weights that are written in
        them or with their brackets.

        Raises UserError for a clip skip that this model cannot have.
        """
        if problem := compatibility.clip_skip_problem(clip_skip, self.family):
            raise UserError(problem)
        blocks = self.text_encoders["text_encoder"].config.num_hidden_layers
        if clip_skip > blocks:
            raise UserError(
                f"tuning.clip_skip: it is {clip_skip}, but this text encoder has {blocks} blocks; lower it."
            )
        self.pieces, self.clip_skip = max_token_length // chunking.LENGTH, clip_skip
        self.pad_tokens, self.weighted = pad_tokens, weighted

    def learn(self, vectors: textual_inversion.Vectors) -> None:
        """Reads these words as their vectors from now on, and no others; none of them is trained yet.

        Raises UserError for vectors that do not belong to this model.
        """
        for part, encoder in self.text_encoders.items():
            if any(part not in of_word for of_word in vectors.values()):
                raise UserError("The embedding of these weights was not made for this model; it is another model's.")
            textual_inversion.put(encoder, [of_word[part] for of_word in vectors.values()])
            self.aside.changed(part, encoder)
        self.words = {word: len(next(iter(of_word.values()))) for word, of_word in vectors.items()}

    def learned(self) -> dict[str, dict[str, Tensor]]:
        """The words that have learned, with the vectors of each, by text encoder."""
        held = {
            part: textual_inversion.held(encoder).split(list(self.words.values()))
            for part, encoder in self.text_encoders.items()
            if self.words
        }
        return {word: {part: some[n].detach() for part, some in held.items()} for n, word in enumerate(self.words)}

    def tokenize(self, prompts: Sequence[str]) -> list[Tensor]:
        """Prompts -> token numbers (B, pieces x 77), one tensor for each text encoder; each piece has its own marks.

        What is longer is cut off; what is shorter gets empty pieces, so that all prompts are read alike.
        """
        return [
            torch.tensor(
                [token_chunks.laid(tokenizer, numbers, self.pieces) for numbers, _ in self._numbers(part, prompts)]
            )
            for part, tokenizer in self.tokenizers.items()
        ]

    def weigh(self, prompts: Sequence[str]) -> Tensor | None:
        """How much each token of the prompts counts, (B, pieces x 77); None where all count alike."""
        if not self.weighted:
            return None
        part, tokenizer = next(iter(self.tokenizers.items()))
        rows = [token_chunks.weights(tokenizer, *read, self.pieces) for read in self._numbers(part, prompts)]
        return torch.tensor(rows) if any(weight != 1 for row in rows for weight in row) else None

    def is_cut(self, prompt: str) -> bool:
        """Whether the prompt is longer than what is read of it."""
        part, tokenizer = next(iter(self.tokenizers.items()))
        numbers, _ = self._numbers(part, [prompt])[0]
        return (
            len(numbers) > chunking.LENGTH
            if self.pieces == 1
            else len(token_chunks.split(tokenizer, numbers)) > self.pieces
        )

    def _numbers(self, part: str, prompts: Sequence[str]) -> list[tuple[list[int], list[float]]]:
        """Each prompt's token numbers without marks, as this text encoder reads it, and how much each counts."""
        words, tokenizer = self._words(part), self.tokenizers[part]
        read = []
        for prompt in prompts:
            numbers, weights = list[int](), list[float]()
            for text, weight in emphasis.read(prompt, weighted=self.weighted):
                numbers += words.put_into(textual_inversion.plain_numbers(tokenizer, text))
                weights += [weight] * (len(numbers) - len(weights))
            read.append((numbers, weights))
        return read

    def _words(self, part: str) -> LearnedTokens:
        """How the words that have learned are found in what this text encoder reads."""
        vocabulary = self.text_encoders[part].get_input_embeddings().num_embeddings
        return LearnedTokens(self.tokenizers[part], vocabulary, self.words)

    def mask(self, tokens: Tensor) -> Tensor | None:
        """What is read of token numbers (B, pieces x 77) without the padding: each piece up to its end mark, and no
        piece that is empty but the first. None with the padding."""
        if self.pad_tokens:
            return None
        pieces = tokens.reshape(len(tokens), -1, PIECE)
        ends = (pieces == next(iter(self.tokenizers.values())).eos_token_id).int()
        read = ends.cumsum(-1) - ends == 0
        read[:, 1:] &= ends[:, 1:, 1:2] == 0
        return read.reshape(len(tokens), -1)

    @abstractmethod
    def read_tokens(self, part: str, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """What a text encoder makes of token numbers (B, pieces x 77): hidden states (B, pieces x 77, its width), and
        the pooled text where the UNet reads that."""

    def encode_tokens(
        self, tokens: Sequence[Tensor], weights: Tensor | None = None, known: Mapping[str, TextEmbedding] = {}
    ) -> TextEmbedding:
        """Token numbers, (B, pieces x 77) for each text encoder, -> what the UNet reads; `weights` as `weigh` has them.
        `known` is what some of them have made of these, as `read_alone` has it."""
        read = [
            (known[part].hidden, known[part].pooled) if part in known else self.read_tokens(part, some)
            for part, some in zip(self.text_encoders, tokens)
        ]
        return self._joined(read, tokens[0], weights)

    def read_alone(self, part: str, prompts: Sequence[str]) -> TextEmbedding:
        """What one text encoder makes of prompts, in float32."""
        tokens = self.tokenize(prompts)[list(self.text_encoders).index(part)]
        with self.present(part):
            hidden, pooled = self.read_tokens(part, hardware.brought(tokens, self.device))
        return TextEmbedding(hidden, pooled).to(torch.float32)

    def encode_text(self, prompts: Sequence[str]) -> TextEmbedding:
        """Prompts -> what the UNet reads, in float32."""
        return self.encode_texts([prompts])[0]

    def encode_texts(self, batches: Sequence[Sequence[str]]) -> list[TextEmbedding]:
        """Several batches of prompts. Text encoders that were put aside come one after the other, each once."""
        tokens = [[hardware.brought(some, self.device) for some in self.tokenize(prompts)] for prompts in batches]
        read: list[list[tuple[Tensor, Tensor | None]]] = [[] for _ in batches]
        for number, part in enumerate(self.text_encoders):
            with self.present(part):
                for of_batch, some in zip(read, tokens):
                    of_batch.append(self.read_tokens(part, some[number]))
        weights = [None if some is None else hardware.brought(some, self.device) for some in map(self.weigh, batches)]
        return [
            self._joined(of_batch, some[0], counted).to(torch.float32)
            for of_batch, some, counted in zip(read, tokens, weights)
        ]

    def _joined(
        self, read: Sequence[tuple[Tensor, Tensor | None]], tokens: Tensor, weights: Tensor | None
    ) -> TextEmbedding:
        """What the text encoders have read, side by side, and the pooled text of the last."""
        hidden = [one if weights is None else token_chunks.weighed(one, weights) for one, _ in read]
        return TextEmbedding(
            hidden[0] if len(hidden) == 1 else torch.cat(hidden, dim=-1), read[-1][1], self.mask(tokens)
        )

    def emptied(self, text: TextEmbedding, rows: Tensor) -> TextEmbedding:
        """The text, of which these rows are the empty prompt's, as the other side of guidance reads that."""
        return text

    def encode_negative(self, prompt: str, count: int) -> TextEmbedding:
        """What the UNet reads for the other side of classifier-free guidance, `count` times."""
        text = self.encode_text([prompt] * count)
        return text if prompt else self.emptied(text, torch.arange(count, device=text.hidden.device))
