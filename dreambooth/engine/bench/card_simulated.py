"""A card simulated on the CPU: it counts the tensors that a process makes, and refuses more than its limit.

A mapped file that something was made of counts whole, and the rest of the process for nothing. So what it counts says
nothing of a card; it serves to go through every line that works with one, where there is none.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from dreambooth.engine.bench.live_tensors import Live


class Simulated(Live):
    """Within it there is such a card; it has what card_memory.Card asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.most = sys.maxsize

    def limit(self, most: int) -> None:
        self.most = most

    def peaks(self) -> tuple[int, int]:
        found, self.peak = self.peak, self.now
        return found, found

    def outside(self) -> int:
        return 0

    def retries(self) -> int:
        return 0

    def workspaces(self) -> int:
        return 0

    def _look(self) -> None:
        if self.now > self.most:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory: {self.now / 2**20:.1f} MiB would be taken of {self.most / 2**20:.1f} MiB "
                "(a card that is simulated on the CPU)."
            )
        self.peak = max(self.peak, self.now)

    def _add(self, tensor: Any) -> None:
        if tensor.device.type == "cpu":
            super()._add(tensor)
