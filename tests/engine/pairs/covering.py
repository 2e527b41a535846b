"""Rows in which every two values of two keys meet at least once, as few as a greedy search finds.

Each row begins with two values that have not met, and what these need; every other key in turn takes the value that
meets the most new ones, as AETG does (Cohen et al. 1997, "The AETG system: an approach to testing based on
combinatorial design"), of those that are not refused. Two values that are refused whatever is done never meet.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np

from tests.engine.pairs.values import Row

Mend = Callable[[Row, Collection[str]], "Row | None"]
Table = dict[str, list[Any]]


class Covering:
    """`rows` yields the rows; `met` of `pairs` pairs of values are in them so far, `refused` can be in none."""

    def __init__(self, table: Table, is_sound: Callable[[Row], bool], mend: Mend, seed: int) -> None:
        self.table, self.is_sound, self.mend, self.chance = table, is_sound, mend, random.Random(seed)
        self.base = {key: values[0] for key, values in table.items()}
        numbers = itertools.count()
        self.number = {key: [next(numbers) for _ in values] for key, values in table.items()}
        self.choices = [(key, value) for key, values in table.items() for value in values]
        self.missing = np.ones((len(self.choices), len(self.choices)), bool)
        for own in self.number.values():
            self.missing[np.ix_(own, own)] = False
        self.pairs = int(self.missing.sum()) // 2
        self.refused: list[tuple[int, int]] = []

    @property
    def met(self) -> int:
        return self.pairs - int(self.missing.sum()) // 2 - len(self.refused)

    def rows(self) -> Iterator[Row]:
        """Until no two values are left that could meet."""
        while (both := self._two_that_have_not_met()) is not None:
            alone, keeping = self._with(self.base, both)
            if alone is None:
                self.refused.append(both)
                self.missing[both] = self.missing[both[::-1]] = False
                continue
            row = self._filled(alone, keeping)
            self._note(row)
            yield row

    def _two_that_have_not_met(self) -> tuple[int, int] | None:
        found = np.argwhere(self.missing)
        if not len(found):
            return None
        one, other = found[self.chance.randrange(len(found))].tolist()
        return one, other

    def _with(self, row: Row, numbers: tuple[int, int]) -> tuple[Row | None, list[str]]:
        """The row with two values, and whatever these need; None where they are refused together."""
        chosen = dict(self.choices[number] for number in numbers)
        return self.mend({**row, **chosen}, chosen.keys()), list(chosen)

    def _filled(self, alone: Row, keeping: list[str]) -> Row:
        """The row with a choice for each key that it leaves at the base."""
        taken = [key for key, value in alone.items() if key in keeping or value != self.base[key]]
        row = dict(alone)
        there = [self._number_of(key, row[key]) for key in taken]
        left = [key for key in self.table if key not in taken]
        self.chance.shuffle(left)
        for key in left:
            own = self.number[key]
            meets = self.missing[np.ix_([n for n in there if n is not None], own)].sum(0)
            order = sorted(range(len(own)), key=lambda n, meets=meets: (-meets[n], self.chance.random()))
            row[key] = next(value for n in order if self.is_sound({**row, key: (value := self.table[key][n])}))
            there.append(self.number[key][self.table[key].index(row[key])])
        return row

    def _note(self, row: Row) -> None:
        """All values of the row have met."""
        there = [n for key, value in row.items() if (n := self._number_of(key, value)) is not None]
        self.missing[np.ix_(there, there)] = False

    def _number_of(self, key: str, value: Any) -> int | None:
        """None for a value that is only there as another's mend."""
        return self.number[key][self.table[key].index(value)] if value in self.table[key] else None
