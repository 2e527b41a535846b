"""Saving states in the background: training waits until a state is copied to the CPU, then a thread writes it."""

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
    """The outcome of a save: its folder or a problem, the seconds that training waited for it, and those it took."""

    step: int
    path: Path | None
    problem: str
    stalled: float
    seconds: float = 0.0


class Writer:
    """Writes one state at a time: the next one waits for the one before."""

    def __init__(self, folder: Path, kept: Kept) -> None:
        self.folder, self.kept = folder, kept
        self._thread: threading.Thread | None = None
        self._copy: Any = None
        self._outcome: Written | None = None

    def begin(self, step: int, content: Content, on_written: Callable[[Written], None]) -> None:
        """Copies the state and starts to write it, after the outcome of the one before was passed to `on_written`.

        Where the computer's memory is too small for a copy, the state is written before this returns.
        """
        began = time.perf_counter()  # training also waits for the state before
        self.finish(on_written)
        self._copy = self._copy_of(content)
        if self._copy is None:
            hardware.wait_for_card()  # as for the copy: the card may be writing to what is saved
            hardware.give_back_pinned()  # of the copy before, and of the part of this one that was made
            self._write(step, content, began, began)
            self._outcome.stalled = self._outcome.seconds  # type: ignore[union-attr]
            return
        hardware.wait_for_card()  # copies from a GPU are asynchronous
        copied_at = time.perf_counter()
        self._thread = threading.Thread(target=self._write, args=(step, self._copy, began, copied_at), name="state")
        self._thread.start()

    def _copy_of(self, content: Content) -> Any:
        """A copy on the CPU, which reuses the memory of the one before; None where the memory is too small for it.

        A GPU copies to pinned memory, which on Windows is limited to half of the computer's memory.
        """
        if state.content_bytes(content) + _SPARE > hardware.available_bytes() + state.content_bytes(self._copy):
            return None
        with out_of_memory.caught():
            return copy_to_cpu(content, self._copy)
        return None

    def poll(self, on_written: Callable[[Written], None]) -> None:
        """Passes the outcome of a write that has ended to `on_written`; never waits."""
        if self._thread is None or not self._thread.is_alive():
            self.finish(on_written)

    def finish(self, on_written: Callable[[Written], None]) -> None:
        """Waits for the current write, if any, and passes its outcome to `on_written`."""
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
        except Exception as error:  # noqa: BLE001  (in a thread: the loop reports it)
            problem = f"The state of step {step} could not be saved ({error}); what was saved before is kept."
        self._outcome = Written(step, path, problem, copied_at - began, time.perf_counter() - began)


def copy_to_cpu(value: Any, earlier: Any = None) -> Any:
    """A copy of nested dictionaries, lists and tensors on the CPU, which reuses the memory of `earlier` where shapes
    and dtypes are the same.

    Copies from a GPU may still be running when it returns. The states of a paged optimizer are read by the CPU, which
    on Windows is not allowed while the card works on anything, such as the copy before.
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
        return {name: copy_to_cpu(one, own.get(name)) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        places = earlier if isinstance(earlier, (list, tuple)) and len(earlier) == len(value) else [None] * len(value)
        return type(value)(copy_to_cpu(one, place) for one, place in zip(value, places))
    return value


def retention_rule(budget: Budget, last: int, every_epochs: int) -> Kept:
    """A rule that keeps the `last` states, and the first one of every `every_epochs` epochs; 0 for none of these."""

    def kept(steps: list[int]) -> set[int]:
        kept_steps, passed = set(steps[-last:]), 0
        for step in steps if every_epochs else ():
            epochs = budget.images_seen(step) // (every_epochs * budget.pictures)
            if epochs > passed:
                kept_steps.add(step)
                passed = epochs
        return kept_steps

    return kept
