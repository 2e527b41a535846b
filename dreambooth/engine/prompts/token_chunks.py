"""A prompt's tokens as text encoders take them: pieces of 77 with marks and padding, and how much each token counts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from dreambooth.engine.prompts import chunking

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

PIECE = chunking.LENGTH + 2  # tokens that a text encoder reads at once, with their marks


def laid(tokenizer: CLIPTokenizer, numbers: Sequence[int], lengths: Mapping[int, int], count: int) -> list[int]:
    """The token numbers of a prompt in `count` pieces of 77 with the begin and end marks; `lengths` are of learned
    words, by their first number."""
    whole: list[int] = []
    for part in _parts(tokenizer, numbers, lengths, count):
        padding = [tokenizer.pad_token_id] * (chunking.LENGTH - len(part))
        whole += [tokenizer.bos_token_id, *part, tokenizer.eos_token_id, *padding]
    return whole


def weights(
    tokenizer: CLIPTokenizer, numbers: Sequence[int], counted: Sequence[float], lengths: Mapping[int, int], count: int
) -> list[float]:
    """How much each token of these pieces counts: of a prompt's own as `counted` has it, marks and padding once."""
    whole, left = list[float](), iter(counted)
    for part in _parts(tokenizer, numbers, lengths, count):
        whole += [1.0, *itertools.islice(left, len(part)), *[1.0] * (PIECE - 1 - len(part))]
    return whole


def _parts(tokenizer: CLIPTokenizer, numbers: Sequence[int], lengths: Mapping[int, int], count: int) -> list[list[int]]:
    """What is read of a prompt, in `count` pieces of at most 75 tokens."""
    if count == 1:
        return [chunking.first(numbers, lengths)]
    parts = split(tokenizer, numbers, lengths)[:count]
    return [*parts, *[[]] * (count - len(parts))]


def split(tokenizer: CLIPTokenizer, numbers: Sequence[int], lengths: Mapping[int, int]) -> list[list[int]]:
    """Token numbers without marks -> chunks of at most 75."""
    return chunking.split(numbers, tokenizer.convert_tokens_to_ids(",</w>"), lengths)


def weighed(hidden: Tensor, counted: Tensor) -> Tensor:
    """Hidden states (B, pieces x 77, width) times how much each token counts (B, pieces x 77), as the WebUI weighs
    words: each piece keeps the mean that it had."""
    pieces = hidden.float().reshape(len(hidden), -1, PIECE, hidden.shape[-1])
    scaled = pieces * counted.reshape(len(hidden), -1, PIECE, 1)
    kept = pieces.mean((-1, -2), keepdim=True) / scaled.mean((-1, -2), keepdim=True)
    return (scaled * kept).reshape(hidden.shape).to(hidden.dtype)
