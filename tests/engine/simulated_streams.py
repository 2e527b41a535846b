"""Two lines of work of a device, simulated on the CPU: what copies works as late, or as early, as it may.

Whatever is not waited for goes wrong in a way that shows: where a GPU would mostly be lucky, this one never is.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

RUBBISH = 0.05  # what lies in memory that nobody has written to


@dataclass
class Late:
    """Copies when the computing waits for them. What is freed before that is counted, as it would be written into when
    it is another's."""

    asked: list[tuple[StorageWeakRef, Tensor, Tensor]] = field(default_factory=list)  # a place, how it lies, a weight
    freed: int = 0
    copied: int = 0
    most: int = 0  # asked for at once

    def follow(self) -> None:
        return

    def copy(self, place: Tensor, weight: Tensor) -> None:
        place.fill_(RUBBISH)
        self.asked.append((StorageWeakRef(place.untyped_storage()), place.to("meta"), weight))
        self.most = max(self.most, len(self.asked))

    @torch.no_grad()
    def join(self) -> None:
        for held, lying, weight in self.asked:
            storage = torch.UntypedStorage._new_with_weak_ptr(held.cdata)
            if storage is None:
                self.freed += 1
                continue
            place = torch.empty(0, dtype=lying.dtype).set_(storage, 0, lying.shape, lying.stride())
            place.copy_(weight)
            self.copied += 1
        self.asked.clear()


@dataclass
class Early:
    """Copies at once; where it does not wait for the computing, what a weight was before that had done anything."""

    first: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    has_followed: bool = False
    copied: int = 0

    def follow(self) -> None:
        self.has_followed = True

    def copy(self, place: Tensor, weight: Tensor) -> None:
        before = self.first.setdefault(id(weight), (weight, weight.detach().clone()))[1]
        place.copy_(weight if self.has_followed else before)
        self.copied += 1

    def join(self) -> None:
        self.has_followed = False
