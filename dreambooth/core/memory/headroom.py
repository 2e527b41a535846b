"""How much of a card a run may count on: others have their part of it, and PyTorch's allocator leaves gaps."""

from __future__ import annotations

from math import ceil

SPARE = 0.06  # of a card,
LEAST_SPARE = 1e9  # but no less bytes: a WebUI's own CUDA context (0.3 to 0.6 GB), the desktop, and gaps
_MOST_SPARE = 0.25  # of a card, however small it is


def usable(card_bytes: float) -> int:
    """What of a card of so many bytes a run may count on; the rest is for others and for gaps."""
    return int(card_bytes - max(SPARE * card_bytes, min(LEAST_SPARE, _MOST_SPARE * card_bytes)))


def card_with(usable_bytes: float) -> int:
    """The card of which so many bytes are usable."""
    return ceil(max(usable_bytes / (1 - SPARE), min(usable_bytes + LEAST_SPARE, usable_bytes / (1 - _MOST_SPARE))))
