"""Prefetching of streamed weights: a block's weights are copied to the device while the block before it computes.

A GPU copies and computes at once where the two are on two streams. The order of the blocks is known from the pass
before: the forward pass, and in the backward pass the blocks that are recomputed. When a block begins, the copy of the
next one's weights is started. Where the order has changed, the block fetches its weights itself.

Three rules give each block the right weights, whatever each stream does when:

1. Copying starts after the compute stream has done all that was asked of it until then (`follow`). So a weight that was
   updated is back in the computer's memory, and the memory of the copy, which the compute stream allocates, is no
   longer used by what had it before.
2. The compute stream waits for the copies before the block that they are for (`join`).
3. A copy is referenced until the compute stream has waited for it, whether it was needed or not.

A trained weight changes after the last use of its block in a pass, and each pass starts without pending copies, so that
no copy is older than the last change. Where a step is recorded and replayed (see tracing), starting a copy and waiting
for it are calls.
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
    """A device's two streams: the compute stream, which is PyTorch's current one, and the copy stream."""

    def follow(self) -> None:
        """Has the copy stream wait for all that was asked of the compute stream until now."""

    def copy(self, place: Tensor, weight: Tensor) -> None:
        """Copies a weight to `place` on the copy stream."""

    def join(self) -> None:
        """Has the compute stream wait for all that was asked of the copy stream until now."""


class SameStream:
    """Copies on the compute stream, where nothing needs to wait."""

    def follow(self) -> None:
        return

    def copy(self, place: Tensor, weight: Tensor) -> None:
        place.copy_(weight, non_blocking=True)

    def join(self) -> None:
        return


class CopyStream:
    """Copies on a second stream of a GPU; while a CUDA graph is captured, on the compute stream."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.copying = device, torch.cuda.Stream(device)

    def follow(self) -> None:
        if stream := self._copy_stream():
            stream.wait_stream(torch.cuda.current_stream(self.device))

    def copy(self, place: Tensor, weight: Tensor) -> None:
        with torch.cuda.stream(self._copy_stream()):
            place.copy_(weight, non_blocking=True)

    def join(self) -> None:
        if stream := self._copy_stream():
            torch.cuda.current_stream(self.device).wait_stream(stream)

    def _copy_stream(self) -> torch.cuda.Stream | None:
        return None if torch.cuda.is_current_stream_capturing() else self.copying


def streams(device: torch.device) -> Streams | None:
    """The streams of a device; None where it has no second one."""
    return CopyStream(device) if device.type == "cuda" else None


class Prefetcher:
    """Copies the weights of a UNet's blocks to the device, at most one block ahead of the one that computes."""

    def __init__(self, streams: Streams, device: torch.device, tell: Callable[[Problem], None]) -> None:
        self.streams, self.device, self.tell = streams, device, tell
        self.blocks: dict[nn.Module, list[nn.Parameter]] = {}  # each one's weights in the computer's memory
        self.is_on, self.is_checked = True, isinstance(streams, SameStream)
        self._pending: list[Tensor] = []  # copies that the compute stream has not waited for
        self._next: tuple[nn.Module, list[Tensor]] | None = None  # the block whose copies were started, and these
        self._orders: dict[bool, list[nn.Module]] = {}  # of the last pass, with gradients and without
        self._has_gradients = False
        self._passed: list[nn.Module] = []  # the blocks of this pass so far

    def start_pass(self) -> None:
        """Called before the UNet's forward pass. The backward pass, if there is one, belongs to the same pass."""
        if self._passed:
            self._orders[self._has_gradients] = self._passed
        self._has_gradients, self._passed, self._next = torch.is_grad_enabled(), [], None
        self._wait()
        self._start_next()

    def before_block(self, block: nn.Module) -> list[Tensor] | None:
        """Called before a block computes. Returns its weights on the device, or None where it has to fetch them."""
        self._passed.append(block)
        expected, self._next = self._next, None
        if expected is None:
            return None
        call(self._wait)
        if expected[0] is not block:
            return None  # the order has changed, so that nothing more is prefetched in this pass
        if not self.is_checked:
            call(functools.partial(self._check, self.blocks[block]), *expected[1])
        self._start_next()
        return expected[1]

    def _start_next(self) -> None:
        order, place = self._orders.get(self._has_gradients, []), len(self._passed)
        if self.is_on and place < len(order):
            weights = self.blocks[order[place]]
            self._next = order[place], call(functools.partial(self._start_copies, weights)) or []

    @torch.no_grad()
    def _start_copies(self, weights: Sequence[nn.Parameter]) -> list[Tensor]:
        self._wait()
        places = [torch.empty_like(weight, device=self.device, requires_grad=False) for weight in weights]
        self._pending = places
        self.streams.follow()
        for place, weight in zip(places, weights):
            self.streams.copy(place, weight)
        return list(places)

    def _wait(self) -> None:
        """Has the compute stream wait for the pending copies."""
        if self._pending:
            self.streams.join()
            self._pending = []

    @torch.no_grad()
    def _check(self, weights: Sequence[nn.Parameter], *copies: Tensor) -> None:
        """Compares the first block that was prefetched with its weights; where they differ, it is corrected and nothing
        is prefetched any more. The only time that the device is waited for."""
        if self.is_checked:
            return
        self.is_checked = True
        expected = [hardware.brought(weight, self.device) for weight in weights]
        differ = torch.stack([(one != other).any() for one, other in zip(copies, expected)]).any()
        if bool(differ):
            self.is_on, self.streams = False, SameStream()
            for place, weight in zip(copies, weights):
                place.copy_(weight)
            self.tell(DIFFERS)
