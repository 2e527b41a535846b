"""Words that learn: vectors of their own in place of the tokens that a word is read as (textual inversion, Gal et al.
2022, arXiv 2208.01618, section 3).

A prompt's token numbers are those of the vocabulary; behind it come the numbers of the learned vectors.
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

    def __init__(self, plain: nn.Embedding, learned: Tensor) -> None:
        """`learned` is (N, width)."""
        super().__init__(*plain.weight.shape, _weight=plain.weight, _freeze=True)
        self.weight, self.plain = plain.weight, [plain]  # in a list, or it would be a part of this
        self.learned = nn.Parameter(learned, requires_grad=False)

    def forward(self, numbers: Tensor) -> Tensor:
        """(B, T) token numbers -> (B, T, width)."""
        known = embedding(numbers.clamp(max=self.num_embeddings - 1), self.weight)
        learned = embedding((numbers - self.num_embeddings).clamp(min=0), self.learned)
        return torch.where((numbers >= self.num_embeddings)[..., None], learned.to(known.dtype), known)


class LearnedTokens:
    """How words that learn are found in a prompt's token numbers, as a WebUI finds an embedding's name."""

    def __init__(self, tokenizer: CLIPTokenizer, vocabulary: int, counts: Mapping[str, int]) -> None:
        """`counts` says of how many vectors each word is, `vocabulary` how many a text encoder has of its own."""
        first, self.places = vocabulary, list[tuple[list[int], list[int]]]()
        self.lengths = dict[int, int]()  # of each word, by its first number
        for word, count in counts.items():
            if own := plain_numbers(tokenizer, word):  # what is no word to the model is in no prompt
                self.places.append((own, list(range(first, first + count))))
            self.lengths[first] = count
            first += count
        self.places.sort(key=lambda place: -len(place[0]))  # a word may begin with another

    def put_into(self, numbers: Sequence[int]) -> list[int]:
        """The token numbers with those of the learned vectors where a word stands."""
        found: list[int] = []
        at = 0
        while at < len(numbers):
            length, instead = next(
                ((len(own), new) for own, new in self.places if list(numbers[at : at + len(own)]) == own),
                (1, [numbers[at]]),
            )
            found += instead
            at += length
        return found


def plain_numbers(tokenizer: CLIPTokenizer, text: str) -> list[int]:
    """The token numbers of a text without marks."""
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def initial(encoder: CLIPTextModel, tokenizer: CLIPTokenizer, text: str, count: int) -> Tensor:
    """`count` vectors to begin with, (count, width): those of the text's tokens, the first ones several times where
    they are fewer. Raises UserError for a text without tokens."""
    numbers = plain_numbers(tokenizer, text)
    if not numbers:
        raise UserError(f"concepts.0.instance_token: {text!r} is no word to the model; write another, such as sks.")
    weight = encoder.get_input_embeddings().weight
    chosen = torch.tensor([numbers[n * len(numbers) // count if count > len(numbers) else n] for n in range(count)])
    return weight[chosen.to(weight.device)].detach().float().clone()


def put(encoder: CLIPTextModel, vectors: Sequence[Tensor]) -> None:
    """Gives a text encoder these vectors, one after the other behind its vocabulary, in place of any it had.

    Raises UserError if they have another width than its own.
    """
    there = encoder.get_input_embeddings()
    plain = there.plain[0] if isinstance(there, TokenEmbedding) else there
    if any(one.shape[1] != plain.embedding_dim for one in vectors):
        raise UserError("The embedding of these weights has another width than this model's; it is another model's.")
    if vectors:
        learned = torch.cat([one.detach().to(plain.weight.device, torch.float32) for one in vectors])
        encoder.set_input_embeddings(TokenEmbedding(plain, learned))
    elif there is not plain:
        encoder.set_input_embeddings(plain)


def held(encoder: CLIPTextModel) -> nn.Parameter:
    """The learned vectors of a text encoder, (N, width)."""
    there = encoder.get_input_embeddings()
    assert isinstance(there, TokenEmbedding)
    return there.learned
