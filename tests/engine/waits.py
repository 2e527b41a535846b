"""A device that can be waited for, simulated on the CPU: which values would lie on a card, and who reads them.

What belongs to the model, what was moved with `to(device)` and everything that is computed from either counts as on the
card. Reading such a value, or moving one there without `non_blocking`, makes the CPU wait for the card.
"""

from __future__ import annotations

import traceback
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

_READS = {"_local_scalar_dense", "item", "nonzero", "equal", "masked_select", "unique_dim", "_unique2", "is_nonzero"}
_READERS = ("tolist", "numpy", "cpu", "__array__")


class Waits(TorchDispatchMode):
    """Within it `found` gets a line for each time that somebody waits."""

    def __init__(self, on_card: Iterable[Tensor]) -> None:
        super().__init__()
        self.found: list[str] = []
        self._card: set[int] = set()
        self._plain: dict[str, Any] = {}
        for tensor in on_card:
            self._put(tensor)

    def __enter__(self) -> Waits:
        self._plain = {name: getattr(Tensor, name) for name in ("to", *_READERS)}
        for name in _READERS:
            setattr(Tensor, name, self._reader(name))
        Tensor.to = self._mover()  # type: ignore[method-assign, assignment]
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *error: Any) -> None:
        for name, plain in self._plain.items():
            setattr(Tensor, name, plain)
        super().__exit__(*error)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        tensors = [one for one in tree_iter((args, kwargs or {})) if isinstance(one, Tensor)]
        on_card = any(map(self.has, tensors))
        if on_card and name in _READS:
            self._tell(name)
        if name in ("index", "index_put_", "index_put") and on_card:
            chosen = [one for one in tree_iter(args[1]) if isinstance(one, Tensor)]
            if any(one.dtype in (torch.bool, torch.uint8) for one in chosen):
                self._tell(f"{name} by truths")
        result = function(*args, **(kwargs or {}))
        if on_card:
            for one in tree_iter(result):
                if isinstance(one, Tensor):
                    self._put(one)
        return result

    def has(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._card

    def _put(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._card:
            self._card.add(storage._cdata)
            weakref.finalize(storage, self._card.discard, storage._cdata)

    def _reader(self, name: str) -> Any:
        plain = self._plain[name]

        def read(tensor: Tensor, *arguments: Any, **more: Any) -> Any:
            if self.has(tensor):
                self._tell(name)
            return plain(tensor, *arguments, **more)

        return read

    def _mover(self) -> Any:
        plain = self._plain["to"]

        def to(tensor: Tensor, *arguments: Any, **more: Any) -> Any:
            given = [*arguments, *more.values()]
            device = any(isinstance(one, (torch.device, str)) for one in given)
            if not device or self.has(tensor):
                return plain(tensor, *arguments, **more)
            if not more.get("non_blocking"):
                self._tell("to(device)")
            moved = plain(tensor, *arguments, **more).clone()
            self._put(moved)
            return moved

        return to

    def _tell(self, what: str) -> None:
        own = [frame for frame in traceback.extract_stack() if "/dreambooth/engine/" in frame.filename]
        where = f"{own[-1].filename.rsplit('/', 1)[-1]}:{own[-1].lineno} {own[-1].line}" if own else "elsewhere"
        self.found.append(f"{what} at {where}")
