"""How a model encodes prompts: its text encoders with their tokenizers, and the learned tokens of textual inversion."""

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
from dreambooth.core.models.families import CHUNK_TOKENS
from dreambooth.engine import compatibility, hardware
from dreambooth.engine.families.offload import Offloader
from dreambooth.engine.prompts import chunking, textual_inversion, token_chunks
from dreambooth.engine.prompts.textual_inversion import LearnedTokens


@dataclass
class TextEmbedding:
    """Encoded prompts: hidden states (B, chunks x 77, width), and for SDXL the pooled text (B, width).

    `mask` (B, chunks x 77) is true for tokens that the UNet attends to; None where it attends to all, padding too.
    """

    hidden: Tensor
    pooled: Tensor | None = None
    mask: Tensor | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors that are not None."""
        return [one for one in (self.hidden, self.pooled, self.mask) if one is not None]

    def map(self, function: Callable[[Tensor | None], Any]) -> TextEmbedding:
        """An embedding of what a function returns for each tensor, and for None."""
        return TextEmbedding(function(self.hidden), function(self.pooled), function(self.mask))

    def __getitem__(self, index: Any) -> TextEmbedding:
        return self.map(lambda some: None if some is None else some[index])

    def to(self, dtype: torch.dtype) -> TextEmbedding:
        return TextEmbedding(self.hidden.to(dtype), None if self.pooled is None else self.pooled.to(dtype), self.mask)

    @staticmethod
    def cat(texts: Sequence[TextEmbedding]) -> TextEmbedding:
        """The prompts of several embeddings, which must have the same tensors, one after the other."""
        pooled = [text.pooled for text in texts if text.pooled is not None]
        masks = [text.mask for text in texts if text.mask is not None]
        return TextEmbedding(
            torch.cat([text.hidden for text in texts]),
            torch.cat(pooled) if pooled else None,
            torch.cat(masks) if masks else None,
        )


@dataclass
class TextEncoding(ABC):
    """The part of a model that encodes prompts. A family says how its text encoders encode tokens.

    A prompt is encoded in `chunks` chunks of 75 tokens, each with its begin and end mark, so of 77.
    """

    text_encoders: dict[str, CLIPTextModel]  # by part: text_encoder, and text_encoder_2 where there are two
    tokenizers: dict[str, CLIPTokenizer]
    _: KW_ONLY
    chunks: int = 1
    clip_skip: int = 1
    pad_tokens: bool = True
    weighted: bool = False  # whether prompts may have emphasis, such as (word:1.2)
    learned_words: dict[str, int] = field(default_factory=dict)  # with learned tokens, and how many each has
    offloader: Offloader = field(default_factory=Offloader)  # of the parts that are on the device only while used

    family: ClassVar[str]

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device that it computes on."""

    def present(self, *names: str) -> AbstractContextManager[None]:
        """Keeps these parts on the device until the block ends."""
        return self.offloader.present(names, self.device)

    def configure_prompts(
        self, max_token_length: int, clip_skip: int, pad_tokens: bool = True, *, weighted: bool = False
    ) -> None:
        """Sets how prompts are encoded from now on: up to `max_token_length` tokens, in chunks of 75; up to the text
        encoder's last block but `clip_skip` - 1; whether the UNet attends to padding; and whether (word:1.2) is
        emphasis or plain text.

        Raises UserError for a clip skip that this model cannot have.
        """
        if problem := compatibility.clip_skip_problem(clip_skip, self.family):
            raise UserError(problem)
        blocks = self.text_encoders["text_encoder"].config.num_hidden_layers
        if clip_skip > blocks:
            raise UserError(
                f"tuning.clip_skip: it is {clip_skip}, but this text encoder has {blocks} blocks; lower it."
            )
        self.chunks, self.clip_skip = max_token_length // chunking.LENGTH, clip_skip
        self.pad_tokens, self.weighted = pad_tokens, weighted

    def set_learned_tokens(self, vectors: textual_inversion.Vectors) -> None:
        """Encodes these words as their vectors from now on, and no others; none of them requires a gradient yet.

        Raises UserError for vectors that do not belong to this model.
        """
        for part, encoder in self.text_encoders.items():
            if any(part not in of_word for of_word in vectors.values()):
                raise UserError("The embedding of these weights was not made for this model; it is another model's.")
            textual_inversion.set_vectors(encoder, [of_word[part] for of_word in vectors.values()])
            self.offloader.update(part, encoder)
        self.learned_words = {word: len(next(iter(of_word.values()))) for word, of_word in vectors.items()}

    def learned_tokens(self) -> dict[str, dict[str, Tensor]]:
        """The vectors of each learned word, by text encoder, (tokens, width)."""
        vectors = {
            part: textual_inversion.learned_vectors(encoder).split(list(self.learned_words.values()))
            for part, encoder in self.text_encoders.items()
            if self.learned_words
        }
        return {
            word: {part: of_words[n].detach() for part, of_words in vectors.items()}
            for n, word in enumerate(self.learned_words)
        }

    def tokenize(self, prompts: Sequence[str]) -> list[Tensor]:
        """Prompts -> token ids (B, chunks x 77), one tensor for each text encoder.

        Longer prompts are truncated; shorter ones get empty chunks, so that all have the same length.
        """
        token_ids = []
        for part, tokenizer in self.tokenizers.items():
            word_lengths = self._learned_tokens(part).lengths
            rows = [
                token_chunks.padded(tokenizer, row, word_lengths, self.chunks)
                for row, _ in self._token_ids(part, prompts)
            ]
            token_ids.append(torch.tensor(rows))
        return token_ids

    def token_weights(self, prompts: Sequence[str]) -> Tensor | None:
        """The emphasis of each token of the prompts, (B, chunks x 77); None where all weights are 1."""
        if not self.weighted:
            return None
        part, tokenizer = next(iter(self.tokenizers.items()))
        word_lengths = self._learned_tokens(part).lengths
        rows = [
            token_chunks.padded_weights(tokenizer, token_ids, weights, word_lengths, self.chunks)
            for token_ids, weights in self._token_ids(part, prompts)
        ]
        return torch.tensor(rows) if any(weight != 1 for row in rows for weight in row) else None

    def is_truncated(self, prompt: str) -> bool:
        """Whether the prompt is longer than what is encoded of it."""
        part, tokenizer = next(iter(self.tokenizers.items()))
        token_ids, _ = self._token_ids(part, [prompt])[0]
        if self.chunks == 1:
            return len(token_ids) > chunking.LENGTH
        return len(token_chunks.split(tokenizer, token_ids, self._learned_tokens(part).lengths)) > self.chunks

    def _token_ids(self, part: str, prompts: Sequence[str]) -> list[tuple[list[int], list[float]]]:
        """Each prompt's token ids for a text encoder, without begin and end marks, and the weight of each token."""
        learned, tokenizer = self._learned_tokens(part), self.tokenizers[part]
        rows = []
        for prompt in prompts:
            token_ids, weights = list[int](), list[float]()
            for text, weight in emphasis.read(prompt, weighted=self.weighted):
                token_ids += learned.replace_words(textual_inversion.token_ids(tokenizer, text))
                weights += [weight] * (len(token_ids) - len(weights))
            rows.append((token_ids, weights))
        return rows

    def _learned_tokens(self, part: str) -> LearnedTokens:
        """The learned tokens as a text encoder numbers them."""
        vocabulary_size = self.text_encoders[part].get_input_embeddings().num_embeddings
        return LearnedTokens(self.tokenizers[part], vocabulary_size, self.learned_words)

    def mask(self, tokens: Tensor) -> Tensor | None:
        """Which of token numbers (B, chunks x 77) the UNet attends to where padding is left out: those of each chunk up
        to its end mark, but of an empty chunk none, unless it is the first. None where it attends to padding."""
        if self.pad_tokens:
            return None
        by_chunk = tokens.reshape(len(tokens), -1, CHUNK_TOKENS)
        ends = (by_chunk == next(iter(self.tokenizers.values())).eos_token_id).int()
        attended = ends.cumsum(-1) - ends == 0
        attended[:, 1:] &= ends[:, 1:, 1:2] == 0
        return attended.reshape(len(tokens), -1)

    @abstractmethod
    def run_encoder(self, part: str, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Runs a text encoder on token ids (B, chunks x 77). Returns hidden states (B, chunks x 77, its width), and
        the pooled text where the UNet reads that."""

    def encode_tokens(
        self, tokens: Sequence[Tensor], weights: Tensor | None = None, encoded: Mapping[str, TextEmbedding] = {}
    ) -> TextEmbedding:
        """Token ids, (B, chunks x 77) for each text encoder, -> the embedding that the UNet reads.

        `weights` is what `token_weights` returns. Text encoders in `encoded` are not run: it has what `encode_with`
        returned for these tokens.
        """
        outputs = [
            (encoded[part].hidden, encoded[part].pooled) if part in encoded else self.run_encoder(part, some)
            for part, some in zip(self.text_encoders, tokens)
        ]
        return self._concatenate(outputs, tokens[0], weights)

    def encode_with(self, part: str, prompts: Sequence[str]) -> TextEmbedding:
        """Prompts -> what one text encoder makes of them, without emphasis, in float32."""
        tokens = self.tokenize(prompts)[list(self.text_encoders).index(part)]
        with self.present(part):
            hidden, pooled = self.run_encoder(part, hardware.brought(tokens, self.device))
        return TextEmbedding(hidden, pooled).to(torch.float32)

    def encode_text(self, prompts: Sequence[str]) -> TextEmbedding:
        """Prompts -> the embedding that the UNet reads, in float32."""
        return self.encode_texts([prompts])[0]

    def encode_texts(self, batches: Sequence[Sequence[str]]) -> list[TextEmbedding]:
        """Batches of prompts -> the embedding of each, in float32. An offloaded text encoder is on the device once."""
        tokens = [[hardware.brought(some, self.device) for some in self.tokenize(prompts)] for prompts in batches]
        outputs: list[list[tuple[Tensor, Tensor | None]]] = [[] for _ in batches]
        for number, part in enumerate(self.text_encoders):
            with self.present(part):
                for of_batch, some in zip(outputs, tokens):
                    of_batch.append(self.run_encoder(part, some[number]))
        all_weights = [
            None if weights is None else hardware.brought(weights, self.device)
            for weights in map(self.token_weights, batches)
        ]
        return [
            self._concatenate(of_batch, some[0], weights).to(torch.float32)
            for of_batch, some, weights in zip(outputs, tokens, all_weights)
        ]

    def _concatenate(
        self, outputs: Sequence[tuple[Tensor, Tensor | None]], tokens: Tensor, weights: Tensor | None
    ) -> TextEmbedding:
        """The hidden states of all text encoders along their width, and the pooled text of the last."""
        hidden = [one if weights is None else token_chunks.emphasize(one, weights) for one, _ in outputs]
        return TextEmbedding(
            hidden[0] if len(hidden) == 1 else torch.cat(hidden, dim=-1), outputs[-1][1], self.mask(tokens)
        )

    def make_unconditional(self, text: TextEmbedding, rows: Tensor) -> TextEmbedding:
        """The text, of which `rows` have the empty prompt, with these as the family's unconditional embedding."""
        return text

    def encode_negative(self, prompt: str, count: int) -> TextEmbedding:
        """The embedding of a negative prompt for classifier-free guidance, `count` times; unconditional if it is
        empty."""
        text = self.encode_text([prompt] * count)
        return text if prompt else self.make_unconditional(text, torch.arange(count, device=text.hidden.device))
