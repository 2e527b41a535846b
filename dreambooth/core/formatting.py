"""Numbers as people read them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def size(count: float) -> str:
    """A number of bytes."""
    if count < 1e5:
        return f"{count / 1e3:.1f} kB"
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def memory(count: float) -> str:
    """A number of bytes of memory, in powers of two, as cards are sold."""
    return f"{count / 2**30:.1f} GB" if count >= 2**30 else f"{count / 2**20:.0f} MB"


def percent(share: float) -> str:
    """A share, without the sign of a zero."""
    return f"{round(share, 2) + 0.0:.0%}"
