"""Offloading of whole parts of a model: they are stored in the computer's memory, and on the device only while used.

Their weights do not change meanwhile, so that what comes to the device is a copy that is dropped after use.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from dreambooth.engine import hardware

Places = list[tuple[dict[str, Tensor | None], str, Tensor]]  # of each weight: its module's table, its name, itself


@contextlib.contextmanager
def moved_to_cpu(part: nn.Module) -> Iterator[None]:
    """Moves a part to the CPU until the block ends, then back to its device."""
    device = next(part.parameters()).device
    part.to("cpu")
    hardware.give_back_memory()
    try:
        yield
    finally:
        part.to(device)


class Offloader:
    """The offloaded parts of a model, by name."""

    def __init__(self) -> None:
        self._places: dict[str, Places] = {}
        self._present: set[str] = set()
        self._on_cpu: set[str] = set()

    def add(self, name: str, part: nn.Module) -> None:
        """Offloads a part, which must be in the computer's memory and whose weights must not be trained."""
        self._places[name] = [
            (table, key, tensor)  # type: ignore[misc]
            for module in part.modules()
            for table in (module._parameters, module._buffers)
            for key, tensor in table.items()
            if tensor is not None
        ]

    def update(self, name: str, part: nn.Module) -> None:
        """Takes note that the weights of a part were replaced, if it is offloaded."""
        if name in self._places:
            self.add(name, part)

    @contextlib.contextmanager
    def computing_in_place(self, name: str) -> Iterator[None]:
        """Has a part compute on the CPU until the block ends, so that `present` does not copy it to the device."""
        self._on_cpu.add(name)
        try:
            yield
        finally:
            self._on_cpu.remove(name)

    @contextlib.contextmanager
    def present(self, names: Iterable[str], device: torch.device) -> Iterator[None]:
        """Has copies of those of these parts that are offloaded on the device until the block ends. May be nested."""
        here = self._present | self._on_cpu
        fetched = [name for name in names if name in self._places and name not in here]
        self._present.update(fetched)
        try:
            for name in fetched:
                for table, key, tensor in self._places[name]:
                    copy = hardware.brought(tensor.detach(), device)
                    is_weight = isinstance(tensor, nn.Parameter)
                    table[key] = nn.Parameter(copy, requires_grad=False) if is_weight else copy
            yield
        finally:
            self._present.difference_update(fetched)
            for name in fetched:
                for table, key, tensor in self._places[name]:
                    table[key] = tensor
