"""Which pictures are in which batch. The answer follows from the seed and the position alone,
so a resumed run needs no more than its position to see what it would have seen."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Order:
    """`instances` and `priors` give the concept of each picture; a concept without priors trains without them."""

    instances: tuple[int, ...]
    priors: tuple[int, ...]
    seed: int
    _by_concept: dict[int, list[int]] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        for index, concept in enumerate(self.priors):
            self._by_concept.setdefault(concept, []).append(index)

    def batch(self, position: int, size: int) -> tuple[Tensor, Tensor]:
        """The instance pictures and the class pictures (indices) of the batch that starts at `position`.

        Every picture is seen once in each pass over its set, in a new order each time.
        """
        chosen, paired = [], []
        for place in range(position, position + size):
            index = _shuffled(len(self.instances), place // len(self.instances), self.seed)[place % len(self.instances)]
            chosen.append(index)
            own = self._by_concept.get(self.instances[index])
            if own:
                paired.append(own[_shuffled(len(own), place // len(own), self.seed + 1)[place % len(own)]])
        return torch.tensor(chosen), torch.tensor(paired, dtype=torch.long)


@functools.lru_cache(maxsize=16)
def _shuffled(count: int, turn: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed((seed * 1_000_003 + turn) % 2**63)
    return torch.randperm(count, generator=generator).tolist()
