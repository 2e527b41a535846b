"""Saving states beside the training: the loop waits until they are copied, a thread writes them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreambooth.core.run_length import Budget
from dreambooth.engine import hardware, out_of_memory
from dreambooth.engine.training import state
from dreambooth.engine.training.state import Content, Kept, NotSaved

_SPARE = 512 * 2**20  # bytes of the computer's memory that a copy leaves free


@dataclass
class Written:
    """How a save went. `stalled` is how long the training stood still for it, in seconds."""

    step: int
    path: Path | None
    problem: str
    stalled: float
    seconds: float = 0.0


class Writer:
    """One state at a time: the next one waits for the one before."""

    def __init__(self, folder: Path, kept: Kept) -> None:
        self.folder, self.kept = folder, kept
        self._thread: threading.Thread | None = None
        self._copy: Any = None
        self._outcome: Written | None = None

    def begin(self, step: int, content: Content, on_written: Callable[[Written], None]) -> None:
        """Copies the state and begins to write it; what became of the one before is told first.

        Where the memory does not hold a copy, it is written from where it is, and the loop waits.
        """
        began = time.perf_counter()  # a wait for the one before is a wait of the training
        self.finish(on_written)
        self._copy = self._copied(content)
        if self._copy is None:
            hardware.wait_for_card()  # as for the copy: what is written may lie in memory that it works in
            hardware.give_back_pinned()  # the copy before, and what there was of this one
            self._write(step, content, began, began)
            self._outcome.stalled = self._outcome.seconds  # type: ignore[union-attr]
            return
        hardware.wait_for_card()  # copies from a GPU go on by themselves
        copied_at = time.perf_counter()
        self._thread = threading.Thread(target=self._write, args=(step, self._copy, began, copied_at), name="state")
        self._thread.start()

    def _copied(self, content: Content) -> Any:
        """A copy, in the place of the one before; None where the memory does not hold it. A GPU copies into memory that
        is pinned, of which Windows gives out half of what there is."""
        if state.content_bytes(content) + _SPARE > hardware.available_bytes() + state.content_bytes(self._copy):
            return None
        with out_of_memory.caught():
            return copied(content, self._copy)
        return None

    def poll(self, on_written: Callable[[Written], None]) -> None:
        """Tells what became of a write that has ended; never waits."""
        if self._thread is None or not self._thread.is_alive():
            self.finish(on_written)

    def finish(self, on_written: Callable[[Written], None]) -> None:
        """Waits for the write that is under way, and tells what became of it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        outcome, self._outcome = self._outcome, None
        if outcome:
            on_written(outcome)

    def _write(self, step: int, content: Content, began: float, copied_at: float) -> None:
        path, problem = None, ""
        try:
            path = state.save(self.folder, step, content, self.kept)
        except NotSaved as error:
            problem = str(error)
        except Exception as error:  # noqa: BLE001  (of a thread: the loop tells it)
            problem = f"The state of step {step} could not be saved ({error}); what was saved before is kept."
        self._outcome = Written(step, path, problem, copied_at - began, time.perf_counter() - began)


def copied(value: Any, earlier: Any = None) -> Any:
    """The same in the computer's memory, in the place of an earlier copy where that is of the same shape.

    Copies from a GPU may still be under way. The states of a paged optimizer are read by the CPU, which on Windows it
    may not do while the card works at anything, such as the copy before.
    """
    if isinstance(value, Tensor):
        if getattr(value, "is_paged", False):
            hardware.wait_for_card()
        place = earlier
        if not isinstance(earlier, Tensor) or (earlier.shape, earlier.dtype) != (value.shape, value.dtype):
            place = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
        return place.copy_(value.detach(), non_blocking=value.is_cuda)
    if isinstance(value, dict):
        own = earlier if isinstance(earlier, dict) else {}
        return {name: copied(one, own.get(name)) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        places = earlier if isinstance(earlier, (list, tuple)) and len(earlier) == len(value) else [None] * len(value)
        return type(value)(copied(one, place) for one, place in zip(value, places))
    return value


def keeping(budget: Budget, last: int, every_epochs: int) -> Kept:
    """The last few states, and the first one of each so many epochs."""

    def kept(steps: list[int]) -> set[int]:
        stay, passed = set(steps[-last:]), 0
        for step in steps if every_epochs else ():
            epochs = budget.images_seen(step) // (every_epochs * budget.pictures)
            if epochs > passed:
                stay.add(step)
                passed = epochs
        return stay

    return kept
