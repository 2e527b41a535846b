"""Streamed weights that come to a card while the block before theirs computes.

A card copies and computes at once where the two are asked of two streams. In which order blocks have their turns is
known from the pass before: forward, and in the backward pass those that are worked out again. When one's turn comes,
the next one's weights are begun. Where the order was another, that only costs what it would have gained.

Three rules make what a block gets right, whatever each stream does when:

1. Copying begins when the computing has done all that it was asked for until then (`follow`). So a weight that changed
   is back in the computer's memory, and the memory that its copy goes to, which is the computing stream's own, is no
   longer used by what had it before.
2. The computing waits for the copies before the block that they are for (`join`).
3. What is on its way is held until the computing has waited for it, whether it was wanted or not.

A trained weight changes after its block's last turn of a pass, and each pass begins with nothing on its way, so that no
copy is older than the last change. Where a step is written down and done again (see tracing), to begin and to wait are
calls.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from dreambooth.core.errors import Problem
from dreambooth.engine import hardware
from dreambooth.engine.tracing.recorder import call

DIFFERS = Problem(
    "Weights that were fetched ahead were not those that lie in the computer's memory; this run fetches each block's "
    "when its turn comes.",
    "memory.unet_weights",
    "Nothing is wrong with what was learned; the steps take longer.",
)


class Streams(Protocol):
    """Two lines of work of a device: what computes, which is PyTorch's current one, and what copies."""

    def follow(self) -> None:
        """Has the copying wait for all that the computing was asked for until now."""

    def copy(self, place: Tensor, weight: Tensor) -> None:
        """Asks the copying for a weight."""

    def join(self) -> None:
        """Has the computing wait for all that the copying was asked for until now."""


class SameStream:
    """Only one line of work: each copy in its turn."""

    def follow(self) -> None:
        return

    def copy(self, place: Tensor, weight: Tensor) -> None:
        place.copy_(weight, non_blocking=True)

    def join(self) -> None:
        return


class CopyStream:
    """A GPU's. While a CUDA graph is captured, each copy is done in its turn."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.copying = device, torch.cuda.Stream(device)

    def follow(self) -> None:
        if beside := self._beside():
            beside.wait_stream(torch.cuda.current_stream(self.device))

    def copy(self, place: Tensor, weight: Tensor) -> None:
        with torch.cuda.stream(self._beside()):
            place.copy_(weight, non_blocking=True)

    def join(self) -> None:
        if beside := self._beside():
            torch.cuda.current_stream(self.device).wait_stream(beside)

    def _beside(self) -> torch.cuda.Stream | None:
        return None if torch.cuda.is_current_stream_capturing() else self.copying


def streams(device: torch.device) -> Streams | None:
    """Those of a device; None where there is no second one."""
    return CopyStream(device) if device.type == "cuda" else None


class Prefetcher:
    """Fetches the weights of a UNet's blocks, at most one block ahead of the one whose turn it is."""

    def __init__(self, streams: Streams, device: torch.device, tell: Callable[[Problem], None]) -> None:
        self.streams, self.device, self.tell = streams, device, tell
        self.blocks: dict[nn.Module, list[nn.Parameter]] = {}  # each one's weights in the computer's memory
        self.is_on, self.is_checked = True, isinstance(streams, SameStream)
        self._under_way: list[Tensor] = []
        self._next: tuple[nn.Module, list[Tensor]] | None = None  # whose weights were begun
        self._orders: dict[bool, list[nn.Module]] = {}  # with gradients, and without
        self._learns = False
        self._passed: list[nn.Module] = []  # of this pass

    def begin_pass(self) -> None:
        """Before the UNet's forward pass; the backward pass belongs to it."""
        if self._passed:
            self._orders[self._learns] = self._passed
        self._learns, self._passed, self._next = torch.is_grad_enabled(), [], None
        self._settle()
        self._begin_next()

    def turn(self, block: nn.Module) -> list[Tensor] | None:
        """Before a block computes. Returns its weights on the device, or None where it has to fetch them itself."""
        self._passed.append(block)
        begun, self._next = self._next, None
        if begun is None:
            return None
        call(self._settle)
        if begun[0] is not block:
            return None  # and no guess any more in this pass
        if not self.is_checked:
            call(functools.partial(self._check, self.blocks[block]), *begun[1])
        self._begin_next()
        return begun[1]

    def _begin_next(self) -> None:
        order, place = self._orders.get(self._learns, []), len(self._passed)
        if self.is_on and place < len(order):
            weights = self.blocks[order[place]]
            self._next = order[place], call(functools.partial(self._begin, weights)) or []

    @torch.no_grad()
    def _begin(self, weights: Sequence[nn.Parameter]) -> list[Tensor]:
        self._settle()
        places = [torch.empty_like(weight, device=self.device, requires_grad=False) for weight in weights]
        self._under_way = places
        self.streams.follow()
        for place, weight in zip(places, weights):
            self.streams.copy(place, weight)
        return list(places)

    def _settle(self) -> None:
        if self._under_way:
            self.streams.join()
            self._under_way = []

    @torch.no_grad()
    def _check(self, weights: Sequence[nn.Parameter], *fetched: Tensor) -> None:
        """Holds what was fetched ahead first against what lies there, and makes it right where it differs."""
        if self.is_checked:
            return
        self.is_checked = True
        there = [hardware.brought(weight, self.device) for weight in weights]
        differ = torch.stack([(one != other).any() for one, other in zip(fetched, there)]).any()
        if bool(differ):  # the one time that the device is waited for
            self.is_on, self.streams = False, SameStream()
            for place, weight in zip(fetched, weights):
                place.copy_(weight)
            self.tell(DIFFERS)
