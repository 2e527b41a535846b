"""The memory of a card as PyTorch's allocator and the driver count it, and at which moment of a run it was needed.

Whoever takes a card's place (card_simulated.py) has these few functions too.
"""

from __future__ import annotations

import functools
import time
from typing import Any, Protocol

from dreambooth.core.job_folder import Job


class Card(Protocol):
    """What is asked of a card. All in bytes."""

    def limit(self, most: int) -> None:
        """From now on more than this is refused, as on a card that has no more."""

    def peaks(self) -> tuple[int, int]:
        """The most that tensors took, and that the allocator held, since it was asked last."""

    def outside(self) -> int:
        """What is taken now beside the allocator: other programs, CUDA's context and its kernels."""

    def retries(self) -> int:
        """How often the allocator had to give back what it kept for later, to find room."""

    def workspaces(self) -> int:
        """What cuBLAS holds of the allocator's memory, one workspace for each thread and stream. It lets go of it."""


class Cuda:
    """The first NVIDIA card."""

    def limit(self, most: int) -> None:
        import torch

        total = torch.cuda.mem_get_info()[1]
        torch.cuda.set_per_process_memory_fraction(min(1.0, most / total))

    def peaks(self) -> tuple[int, int]:
        import torch

        found = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        torch.cuda.reset_peak_memory_stats()
        return found

    def outside(self) -> int:
        import torch

        free, total = torch.cuda.mem_get_info()
        return int(total - free - torch.cuda.memory_reserved())

    def retries(self) -> int:
        import torch

        return int(torch.cuda.memory_stats()["num_alloc_retries"])

    def workspaces(self) -> int:
        import torch

        before = torch.cuda.memory_allocated()
        torch._C._cuda_clearCublasWorkspaces()
        return int(before - torch.cuda.memory_allocated())


class Moments:
    """A run's needs by what it was at, and the time of each step, both taken from what it reports."""

    def __init__(self, card: Card) -> None:
        self.card = card
        self.allocated: dict[str, int] = {}
        self.reserved = 0
        self.steps: list[float] = []  # when each was done, of a clock that only runs forward
        self.losses: list[float] = []
        self._stage = "start"

    def watch(self) -> None:
        """Takes hold of what jobs report; each step is reported, for which the card is waited for."""
        from dreambooth.engine.training import step_metrics

        step_metrics.REPORT_SECONDS = -1.0
        report = Job.report

        @functools.wraps(report)
        def watched(job: Job, event: str, **fields: Any) -> None:
            self.look(event, fields)
            report(job, event, **fields)

        Job.report = watched  # type: ignore[method-assign]

    def look(self, event: str, fields: dict[str, Any]) -> None:
        """What was needed since the last event belongs to this one where it tells of what is done, else to the stage
        that is under way."""
        if event == "step":
            self.steps.append(time.monotonic())
            self.losses.append(fields["loss"])
        allocated, reserved = self.card.peaks()
        name = {"step": "steps", "preview": "previews", "saved": "saving"}.get(event, self._stage)
        self.allocated[name] = max(self.allocated.get(name, 0), allocated)
        self.reserved = max(self.reserved, reserved)
        if event == "stage":
            self._stage = fields["name"]
