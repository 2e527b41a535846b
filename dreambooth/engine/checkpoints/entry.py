"""A tensor that will be written to a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Entry:
    """A tensor to be written: what it will look like, and how to get it when its turn comes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    get: Callable[[], Tensor]

    @classmethod
    def of(cls, tensor: Tensor, dtype: torch.dtype | None = None) -> Entry:
        """A tensor in memory, to be written in `dtype` or as it is."""
        return cls(dtype or tensor.dtype, tuple(tensor.shape), lambda: tensor.detach())

    @property
    def bytes(self) -> int:
        return self.dtype.itemsize * torch.Size(self.shape).numel()

    def content(self) -> memoryview:
        tensor = self.get().to("cpu", self.dtype).contiguous()
        return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
