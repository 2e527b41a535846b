"""Learning-rate curves: the share of the full rate at a point of the run, both between 0 and 1."""

from __future__ import annotations

import math


def rate_factor(name: str, progress: float, warmup: float) -> float:
    """`progress` is the share of the run's images seen so far; `warmup` the share over which the rate rises."""
    if progress < warmup:
        return progress / warmup
    if name == "constant":
        return 1.0
    rest = min(1.0, (progress - warmup) / (1 - warmup))
    if name == "linear":
        return 1 - rest
    if name == "cosine":
        return 0.5 * (1 + math.cos(math.pi * rest))
    raise ValueError(name)
