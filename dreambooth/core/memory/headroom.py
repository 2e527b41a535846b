"""How much of a GPU's memory a run may count on: other programs use some of it, and PyTorch's allocator leaves gaps."""

from __future__ import annotations

from math import ceil

SPARE = 0.06  # of a card,
LEAST_SPARE = 1e9  # but no less bytes: a WebUI's own CUDA context (0.3 to 0.6 GB), the desktop, and gaps
_MOST_SPARE = 0.25  # of a card, however small it is


def usable(card_bytes: float) -> int:
    """How many bytes of a card a run may count on; the rest is for other programs and for gaps."""
    return int(card_bytes - max(SPARE * card_bytes, min(LEAST_SPARE, _MOST_SPARE * card_bytes)))


def card_with(usable_bytes: float) -> int:
    """The size of a card of which so many bytes are usable."""
    return ceil(max(usable_bytes / (1 - SPARE), min(usable_bytes + LEAST_SPARE, usable_bytes / (1 - _MOST_SPARE))))
