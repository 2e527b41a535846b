"""When a run was best, by the pictures that it does not learn.

As long as a run learns the subject these are predicted better and better; then hardly any more, while the subject still
settles; and from where only the training pictures are repeated, worse. The best is the last measure before that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WITHIN = 0.05  # of the highest measure; two with other noise differ by as much


@dataclass(frozen=True)
class Measure:
    """What was measured after so many steps and images: by how much of their error pictures are predicted better than
    before the run, and how far the class has drifted (None without one)."""

    step: int
    images: int
    held_out: float
    learned: float
    drift: float | None


def best(measures: Sequence[Measure]) -> Measure | None:
    """The last measure, from the highest on, before they fall; None before the first step has been measured."""
    after = [one for one in measures if one.images]
    if not after:
        return None
    highest = max(after, key=lambda one: one.held_out)
    found, least = highest, highest.held_out - WITHIN * abs(highest.held_out)
    for one in after[after.index(highest) + 1 :]:
        if one.held_out < least:
            break
        found = one
    return found


def measures_past(measures: Sequence[Measure]) -> int:
    """How many measures came after the best."""
    found = best(measures)
    return 0 if found is None else sum(one.images > found.images for one in measures)
