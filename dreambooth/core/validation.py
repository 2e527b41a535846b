"""When a run was best, by pictures that it learns and pictures that it does not.

As long as a run learns the subject, both are predicted better and better. From where it only repeats the pictures that
it learns, these still gain, and the others lose. So both count alike, and the best is where they are highest together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

CAN_SPARE = 8  # pictures of a concept, of which one can be held out without being missed
MOST_MEASURED = 4  # of the pictures that are learned, and of their mirror images


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

    @property
    def is_better(self) -> bool:
        """Whether anything was gained since before the run."""
        return self.worth > 0


def could_tell(held_out: Sequence[int], pictures: Sequence[int]) -> bool:
    """Whether a run that holds nothing out could spare a picture; both of each of its concepts."""
    return not any(held_out) and any(count >= CAN_SPARE for count in pictures)


def best(measures: Sequence[Measure]) -> Measure | None:
    """The measure of the highest worth; None before the first step has been measured."""
    return max((one for one in measures if one.images), key=lambda one: one.worth, default=None)


def measures_past(measures: Sequence[Measure]) -> int:
    """How many measures came after the best."""
    found = best(measures)
    return 0 if found is None else sum(one.images > found.images for one in measures)


def spread(count: int, most: int) -> list[int]:
    """At most so many places among `count`, the first and the last among them, evenly apart."""
    return list(dict.fromkeys(round(n * (count - 1) / max(1, most - 1)) for n in range(most)))


def thinned(moments: Sequence[int], most: int, best: int | None) -> list[int]:
    """The first, the last and some between of moments in their order, at most so many, and the best among them."""
    if len(moments) <= most:
        return list(moments)
    chosen = [moments[place] for place in spread(len(moments), most)]
    if best is not None and best in moments and best not in chosen:
        nearest = min(range(1, most - 1), key=lambda i: abs(chosen[i] - best))
        chosen[nearest] = best
    return chosen
