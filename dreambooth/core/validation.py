"""When a run was best, by pictures that it learns and pictures that it does not.

As long as a run learns the subject, both are predicted better and better. From where it only repeats the pictures that
it learns, these still gain, and the others lose. So both count alike, and the best is where they are highest together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """What was measured after so many steps and images: by how much of their error pictures are predicted better than
    before the run, and how far the class has drifted (None without one)."""

    step: int
    images: int
    held_out: float
    learned: float
    drift: float | None

    @property
    def worth(self) -> float:
        return (self.held_out + self.learned) / 2


def best(measures: Sequence[Measure]) -> Measure | None:
    """The measure of the highest worth; None before the first step has been measured."""
    return max((one for one in measures if one.images), key=lambda one: one.worth, default=None)


def measures_past(measures: Sequence[Measure]) -> int:
    """How many measures came after the best."""
    found = best(measures)
    return 0 if found is None else sum(one.images > found.images for one in measures)
