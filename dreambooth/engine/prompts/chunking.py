"""Prompts that are longer than the text encoder reads at once, cut as the WebUI cuts them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from dreambooth.core.models.families import PROMPT_TOKENS

LENGTH = PROMPT_TOKENS  # tokens that the text encoder reads at once, besides its begin and end marks
COMMA_WITHIN = 20  # the WebUI's default for how far back a comma may be to cut behind it


def split(token_ids: Sequence[int], comma_id: int, word_lengths: Mapping[int, int] = {}) -> list[list[int]]:
    """Token ids without begin and end marks -> chunks of at most 75; a full chunk is cut behind its last comma if that
    is near. `word_lengths` says how many vectors a learned word has, by its first id: one that does not fit begins the
    next chunk.

    Follows the WebUI's `comma_padding_backtrack` of 20, so that training reads a prompt as generation does.
    """
    chunks: list[list[int]] = [[]]
    last_comma = -1
    for unit in _units(token_ids, word_lengths):
        chunk = chunks[-1]
        if unit[0] == comma_id:
            last_comma = len(chunk)
        elif len(chunk) == LENGTH and last_comma != -1 and len(chunk) - last_comma <= COMMA_WITHIN:
            chunks.append(chunk[last_comma + 1 :])
            del chunk[last_comma + 1 :]
            last_comma = -1
        if len(chunks[-1]) + len(unit) > LENGTH:
            chunks.append([])
            last_comma = -1
        chunks[-1] += unit
    return chunks


def truncate(token_ids: Sequence[int], word_lengths: Mapping[int, int]) -> list[int]:
    """What is read of a prompt that is not cut into chunks: its first 75 tokens, but no part of a learned word."""
    kept: list[int] = []
    for unit in _units(token_ids, word_lengths):
        if len(kept) + len(unit) > LENGTH:
            break
        kept += unit
    return kept


def _units(token_ids: Sequence[int], word_lengths: Mapping[int, int]) -> Iterator[Sequence[int]]:
    """What is never cut: each token, or all ids of a learned word if they fit into a chunk at all."""
    start = 0
    while start < len(token_ids):
        length = word_lengths.get(token_ids[start], 1)
        unit = token_ids[start : start + (length if length <= LENGTH else 1)]
        yield unit
        start += len(unit)
