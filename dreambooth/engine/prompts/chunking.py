"""Prompts that are longer than the text encoder reads at once, cut as the WebUI cuts them."""

from __future__ import annotations

from collections.abc import Sequence

from dreambooth.core.models.families import PROMPT_TOKENS

LENGTH = PROMPT_TOKENS  # tokens that the text encoder reads at once, besides its begin and end marks
COMMA_WITHIN = 20  # the WebUI's default for how far back a comma may be to cut behind it


def split(tokens: Sequence[int], comma: int) -> list[list[int]]:
    """Token numbers without marks -> chunks of at most 75; a full chunk is cut behind its last comma if that is near.

    Follows the WebUI's `comma_padding_backtrack` of 20, so that training reads a prompt as generation does.
    """
    chunks: list[list[int]] = [[]]
    last_comma = -1
    for token in tokens:
        chunk = chunks[-1]
        if token == comma:
            last_comma = len(chunk)
        elif len(chunk) == LENGTH and last_comma != -1 and len(chunk) - last_comma <= COMMA_WITHIN:
            chunks.append(chunk[last_comma + 1 :])
            del chunk[last_comma + 1 :]
            last_comma = -1
        if len(chunks[-1]) == LENGTH:
            chunks.append([])
            last_comma = -1
        chunks[-1].append(token)
    return chunks
