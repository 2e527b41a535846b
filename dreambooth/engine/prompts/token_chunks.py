"""A prompt as text encoders take it: chunks of 77 tokens with begin and end marks and padding, and the weight of each
token (emphasis)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from dreambooth.core.models.families import CHUNK_TOKENS
from dreambooth.engine.prompts import chunking

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


def padded(
    tokenizer: CLIPTokenizer, token_ids: Sequence[int], word_lengths: Mapping[int, int], chunks: int
) -> list[int]:
    """A prompt's token ids -> `chunks` chunks of 77 in a row, with begin and end marks and padding.

    `word_lengths` is that of `chunking.split`.
    """
    row: list[int] = []
    for chunk in _chunks(tokenizer, token_ids, word_lengths, chunks):
        padding = [tokenizer.pad_token_id] * (chunking.LENGTH - len(chunk))
        row += [tokenizer.bos_token_id, *chunk, tokenizer.eos_token_id, *padding]
    return row


def padded_weights(
    tokenizer: CLIPTokenizer,
    token_ids: Sequence[int],
    weights: Sequence[float],
    word_lengths: Mapping[int, int],
    chunks: int,
) -> list[float]:
    """The weight of each token of what `padded` returns: `weights` are those of `token_ids`; marks and padding have
    1."""
    row, remaining = list[float](), iter(weights)
    for chunk in _chunks(tokenizer, token_ids, word_lengths, chunks):
        row += [1.0, *itertools.islice(remaining, len(chunk)), *[1.0] * (CHUNK_TOKENS - 1 - len(chunk))]
    return row


def _chunks(
    tokenizer: CLIPTokenizer, token_ids: Sequence[int], word_lengths: Mapping[int, int], chunks: int
) -> list[list[int]]:
    """What is read of a prompt, in `chunks` chunks of at most 75 tokens, the last of which may be empty."""
    if chunks == 1:
        return [chunking.truncate(token_ids, word_lengths)]
    found = split(tokenizer, token_ids, word_lengths)[:chunks]
    return [*found, *[[]] * (chunks - len(found))]


def split(tokenizer: CLIPTokenizer, token_ids: Sequence[int], word_lengths: Mapping[int, int]) -> list[list[int]]:
    """Token ids without begin and end marks -> chunks of at most 75."""
    return chunking.split(token_ids, tokenizer.convert_tokens_to_ids(",</w>"), word_lengths)


def emphasize(hidden: Tensor, weights: Tensor) -> Tensor:
    """Hidden states (B, chunks x 77, width) times the weight of each token (B, chunks x 77), as the WebUI applies
    emphasis: each chunk is rescaled to the mean that it had."""
    chunks = hidden.float().reshape(len(hidden), -1, CHUNK_TOKENS, hidden.shape[-1])
    weighted = chunks * weights.reshape(len(hidden), -1, CHUNK_TOKENS, 1)
    rescale = chunks.mean((-1, -2), keepdim=True) / weighted.mean((-1, -2), keepdim=True)
    return (weighted * rescale).reshape(hidden.shape).to(hidden.dtype)
