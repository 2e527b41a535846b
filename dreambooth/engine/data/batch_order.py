"""Which pictures are in which batch. The answer follows from the seed and the position alone,
so a resumed run needs no more than its position to see what it would have seen."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass, field
from itertools import accumulate
from math import gcd

import torch
from torch import Tensor

from dreambooth.core.buckets import Bucket


@dataclass(frozen=True)
class Slot:
    """One picture's place in the order. Its variants follow each other among the encoded examples."""

    concept: int
    bucket: Bucket
    variants: int = 1
    repeats: int = 1  # how often each pass sees it


class BatchOrder:
    """All pictures of a batch are of one bucket, so that its shape is known beforehand.

    Every picture is seen once in each pass over its bucket, or as often as it repeats, in a new order each time, in its
    variants in turn. The buckets take turns in proportion to what they hold, in a new order each epoch; a batch that a
    pass cannot fill goes on with the bucket's next pass, so that a batch is always full and epochs stay what they are:
    images seen. A picture of the class goes with each of yours that has some of its concept and bucket; they too are
    each seen once in each pass over them.
    """

    def __init__(self, instances: list[Slot], priors: list[Slot], seed: int) -> None:
        self.seed = seed
        self.count = sum(slot.repeats for slot in instances)
        buckets = list(dict.fromkeys(slot.bucket for slot in instances))
        self._queues = [_Queue(instances, bucket, seed + 7919 * n) for n, bucket in enumerate(buckets)]
        numbers = {bucket: n for n, bucket in enumerate(buckets)}
        kinds = dict.fromkeys((numbers[slot.bucket], slot.concept) for slot in priors if slot.bucket in numbers)
        self._priors = {(n, concept): _Queue(priors, buckets[n], seed + 7919 * n + 1, concept) for n, concept in kinds}
        self._turns = _take_turns([len(queue.slots) for queue in self._queues])
        self._epoch: tuple[tuple[int, int], list[tuple[int, int]]] = ((-1, 0), [])

    def batch(self, position: int, size: int) -> tuple[Tensor, Tensor]:
        """The examples of your pictures and of the class (numbers) in the batch that starts at `position`, which
        counts images and is a multiple of `size`."""
        epoch = position // self.count
        first = -(-epoch * self.count // size)  # the first batch that begins in this epoch
        if self._epoch[0] != (epoch, size):
            after = -(-(epoch + 1) * self.count // size)
            self._epoch = ((epoch, size), self._mixed(first, after, epoch))
        number, earlier = self._epoch[1][position // size - first]
        chosen, paired = [], []
        for at in range(earlier * size, (earlier + 1) * size):
            example, concept = self._queues[number].example(at)
            chosen.append(example)
            if own := self._priors.get((number, concept)):
                paired.append(own.example(self._queues[number].of_its_concept(at))[0])
        return torch.tensor(chosen), torch.tensor(paired, dtype=torch.long)

    def _mixed(self, first: int, after: int, epoch: int) -> list[tuple[int, int]]:
        """For each batch of an epoch, from `first` to before `after`: its bucket's number, and how many batches that
        bucket had before it."""
        rounds, begun = divmod(first, len(self._turns))
        before = [rounds * self._turns.count(n) + self._turns[:begun].count(n) for n in range(len(self._queues))]
        mixed = []
        for place in _shuffled(after - first, epoch, self.seed + 2):
            number = self._turns[(first + place) % len(self._turns)]
            mixed.append((number, before[number]))
            before[number] += 1
        return mixed


@dataclass
class _Queue:
    """The endless sequence of the pictures of one bucket (and concept), pass after pass."""

    all_slots: list[Slot]
    bucket: Bucket
    seed: int
    concept: int | None = None
    slots: list[tuple[Slot, int]] = field(init=False)  # with the number of its first example
    _held: Counter[int] = field(init=False)  # pictures of each concept
    _counted: tuple[int, list[int]] = (-1, [])  # a pass, and of each place how many of its concept come before it

    def __post_init__(self) -> None:
        firsts = accumulate((slot.variants for slot in self.all_slots), initial=0)
        self.slots = [
            (slot, first)
            for slot, first in zip(self.all_slots, firsts)
            if slot.bucket == self.bucket and self.concept in (None, slot.concept)
            for _ in range(slot.repeats)
        ]
        self._held = Counter(slot.concept for slot, _ in self.slots)

    def example(self, at: int) -> tuple[int, int]:
        """The number of the example at this place of the sequence, and its concept."""
        turn, place = divmod(at, len(self.slots))
        index = _shuffled(len(self.slots), turn, self.seed)[place]
        slot, first = self.slots[index]
        return first + (turn + index) % slot.variants, slot.concept

    def of_its_concept(self, at: int) -> int:
        """The same place in the sequence of the pictures of its concept alone."""
        turn, place = divmod(at, len(self.slots))
        order = _shuffled(len(self.slots), turn, self.seed)
        if self._counted[0] != turn:
            seen = Counter[int]()
            self._counted = (turn, [])
            for index in order:
                concept = self.slots[index][0].concept
                self._counted[1].append(seen[concept])
                seen[concept] += 1
        return turn * self._held[self.slots[order[place]][0].concept] + self._counted[1][place]


def _take_turns(counts: list[int]) -> list[int]:
    """The shortest sequence in which each number appears in proportion to its count, as evenly as can be: the next is
    always the one that is furthest behind."""
    shares = [count // gcd(*counts) for count in counts]
    total, taken, turns = sum(shares), [0] * len(shares), []
    for turn in range(1, total + 1):
        number = max(range(len(shares)), key=lambda n: turn * shares[n] - taken[n] * total)
        taken[number] += 1
        turns.append(number)
    return turns


@functools.lru_cache(maxsize=128)
def _shuffled(count: int, turn: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed((seed * 1_000_003 + turn) % 2**63)
    return torch.randperm(count, generator=generator).tolist()
