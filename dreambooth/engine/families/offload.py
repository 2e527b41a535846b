"""Parts of a model that lie in the computer's own memory and are on the device only while they are used.

Nothing in them is trained, so that what comes to the device is a copy, and leaves it without being copied back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from dreambooth.engine import hardware

Places = list[tuple[dict[str, Tensor | None], str, Tensor]]  # of each weight: its module's table, its name, itself


@contextlib.contextmanager
def away(part: nn.Module) -> Iterator[None]:
    """Within it a part has left its device."""
    device = next(part.parameters()).device
    part.to("cpu")
    hardware.give_back_memory()
    try:
        yield
    finally:
        part.to(device)


class Offloader:
    """The parts that were put aside, by name."""

    def __init__(self) -> None:
        self._places: dict[str, Places] = {}
        self._present: set[str] = set()
        self._staying: set[str] = set()

    def put(self, name: str, part: nn.Module) -> None:
        """Puts a part aside. It must lie in the computer's memory, and nothing in it may be trained."""
        self._places[name] = [
            (table, key, tensor)  # type: ignore[misc]
            for module in part.modules()
            for table in (module._parameters, module._buffers)
            for key, tensor in table.items()
            if tensor is not None
        ]

    def changed(self, name: str, part: nn.Module) -> None:
        """A part has other weights than it had when it was put aside, if it was."""
        if name in self._places:
            self.put(name, part)

    @contextlib.contextmanager
    def staying(self, name: str) -> Iterator[None]:
        """Within it a part does its work where it lies, and does not come to the device."""
        self._staying.add(name)
        try:
            yield
        finally:
            self._staying.remove(name)

    @contextlib.contextmanager
    def present(self, names: Iterable[str], device: torch.device) -> Iterator[None]:
        """Within it these parts are on the device, as far as they were put aside; within itself it does nothing."""
        here = self._present | self._staying
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
