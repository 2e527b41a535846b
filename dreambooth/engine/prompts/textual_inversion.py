"""Learned words: vectors of their own in place of the tokens that a word is read as (textual inversion, Gal et al.
2022, arXiv 2208.01618, section 3).

A prompt's token ids are those of the vocabulary; the ids of the learned vectors follow after these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from dreambooth.core.errors import UserError

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

Vectors = Mapping[str, Mapping[str, Tensor]]  # {word: {text encoder: (n, width)}}


class TokenEmbedding(nn.Embedding):
    """A text encoder's token embedding, whose own weight it goes on using, with learned vectors behind it."""

    def __init__(self, base: nn.Embedding, learned: Tensor) -> None:
        """`learned` is (N, width)."""
        super().__init__(*base.weight.shape, _weight=base.weight, _freeze=True)
        self.weight, self.base = base.weight, [base]  # in a list, or it would be registered as a submodule
        self.learned = nn.Parameter(learned, requires_grad=False)

    def forward(self, token_ids: Tensor) -> Tensor:
        """(B, T) token ids -> (B, T, width)."""
        base = embedding(token_ids.clamp(max=self.num_embeddings - 1), self.weight)
        learned = embedding((token_ids - self.num_embeddings).clamp(min=0), self.learned)
        return torch.where((token_ids >= self.num_embeddings)[..., None], learned.to(base.dtype), base)


class LearnedTokens:
    """Finds learned words in a prompt's token ids, as a WebUI finds an embedding's name."""

    def __init__(self, tokenizer: CLIPTokenizer, vocabulary_size: int, vector_counts: Mapping[str, int]) -> None:
        """`vector_counts` says how many vectors each word has; `vocabulary_size` is the text encoder's own."""
        first_id, self._replacements = vocabulary_size, list[tuple[list[int], list[int]]]()
        self.lengths = dict[int, int]()  # how many vectors each word has, by its first id
        for word, count in vector_counts.items():
            if word_ids := token_ids(tokenizer, word):  # a word without tokens is in no prompt
                self._replacements.append((word_ids, list(range(first_id, first_id + count))))
            self.lengths[first_id] = count
            first_id += count
        self._replacements.sort(key=lambda pair: -len(pair[0]))  # a word may begin with another

    def replace_words(self, prompt_ids: Sequence[int]) -> list[int]:
        """The token ids with those of the learned vectors where a learned word stands."""
        replaced: list[int] = []
        start = 0
        while start < len(prompt_ids):
            length, new_ids = next(
                (
                    (len(word_ids), new_ids)
                    for word_ids, new_ids in self._replacements
                    if list(prompt_ids[start : start + len(word_ids)]) == word_ids
                ),
                (1, [prompt_ids[start]]),
            )
            replaced += new_ids
            start += length
        return replaced


def token_ids(tokenizer: CLIPTokenizer, text: str) -> list[int]:
    """The token ids of a text, without begin and end marks."""
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def initial_vectors(encoder: CLIPTextModel, tokenizer: CLIPTokenizer, text: str, count: int) -> Tensor:
    """`count` vectors to begin with, (count, width): those of the text's tokens, the first ones several times where
    they are fewer. Raises UserError for a text without tokens."""
    ids = token_ids(tokenizer, text)
    if not ids:
        raise UserError(f"concepts.0.instance_token: {text!r} is no word to the model; write another, such as sks.")
    weight = encoder.get_input_embeddings().weight
    rows = torch.tensor([ids[n * len(ids) // count if count > len(ids) else n] for n in range(count)])
    return weight[rows.to(weight.device)].detach().float().clone()


def set_vectors(encoder: CLIPTextModel, vectors: Sequence[Tensor]) -> None:
    """Gives a text encoder these vectors, one after the other behind its vocabulary, in place of any it had.

    Raises UserError if they have another width than its own.
    """
    current = encoder.get_input_embeddings()
    base = current.base[0] if isinstance(current, TokenEmbedding) else current
    if any(one.shape[1] != base.embedding_dim for one in vectors):
        raise UserError("The embedding of these weights has another width than this model's; it is another model's.")
    if vectors:
        learned = torch.cat([one.detach().to(base.weight.device, torch.float32) for one in vectors])
        encoder.set_input_embeddings(TokenEmbedding(base, learned))
    elif current is not base:
        encoder.set_input_embeddings(base)


def learned_vectors(encoder: CLIPTextModel) -> nn.Parameter:
    """The learned vectors of a text encoder, (N, width)."""
    current = encoder.get_input_embeddings()
    assert isinstance(current, TokenEmbedding)
    return current.learned
