"""The operations that a computation asks of a device, written down while it is done.

What is written down is what is left of a computation below Python's modules, autograd and autocast: forward and
backward pass alike are a list of PyTorch's operations on tensors. A tensor is known by its place in memory, as autograd
hands on what it kept under new objects. Places are known by the storage, which is referred to weakly, so that nothing
is held longer than by the computation itself.

What is to be done anew each time, as it depends on more than tensors (an optimizer's step on the count of its steps),
is a call: of it only its place in the list and its tensors are written down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_iter, tree_map

_DECIDED_BY_VALUES = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.inplace_view)


class NotTraceable(Exception):
    """What is done depends on more than the shapes of what is given."""


@dataclass(frozen=True, slots=True)
class Made:
    """A tensor that is given to the computation, or made in it."""

    number: int


@dataclass(frozen=True, slots=True)
class Constant:
    """A tensor that was there before; its values may change, its place may not."""

    number: int


Called = Callable[..., "list[Tensor] | None"]  # what it returns is new


@dataclass(slots=True)
class Operation:
    """One operation, or a call of a function of Python's.

    `results` are the tensors that are new with it, and None for others and for what is no tensor.
    """

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: list[Made | None]
    is_many: bool  # whether it returns several

    @property
    def used(self) -> list[Made]:
        return [one for one in tree_iter((self.args, self.kwargs)) if isinstance(one, Made)]

    @property
    def acts(self) -> bool:
        """Whether it does more than to return something new: it writes, or draws random numbers, or is a call."""
        if not isinstance(self.function, torch._ops.OpOverload):
            return True
        return self.function._schema.is_mutable or torch.Tag.nondeterministic_seeded in self.function.tags


class Recorder(TorchDispatchMode):
    """Within it all operations are done and written down. The inputs must lie in storages of their own.

    Raises NotTraceable for an operation whose result's shape, or what Python reads of it, depends on values.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.constants: list[Tensor] = []
        self._known: dict[Any, Made | Constant] = {}
        self._storages: dict[int, StorageWeakRef] = {}
        self._own: set[int] = set()  # storages of what is given or made
        self._count = 0
        self._is_calling = False
        self.inputs = [self._new(tensor) for tensor in inputs]

    def reference(self, tensor: Tensor) -> Made | Constant:
        """By which name a tensor is known."""
        place = self._place(tensor)
        if place not in self._known:
            if place[0] in self._own:
                raise NotTraceable("A part of a tensor was taken unseen.")
            self._known[place] = self._constant(tensor)
        return self._known[place]

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._is_calling:
            return function(*args, **kwargs)
        if not isinstance(function, torch._ops.OpOverload) or _is_decided_by_values(function, args):
            raise NotTraceable(f"{function} depends on values.")
        named_args, named_kwargs = tree_map(self._named, args), tree_map(self._named, kwargs)
        result = function(*args, **kwargs)
        is_many = isinstance(result, (tuple, list))
        results = [self._made(one) for one in (result if is_many else [result])]
        operation = Operation(function, named_args, named_kwargs, results, is_many)
        if any(results) or operation.acts:
            self.operations.append(operation)
        return result

    def call(self, function: Called, tensors: Sequence[Tensor]) -> list[Tensor] | None:
        """See the function of this name."""
        named = tuple(self.reference(tensor) for tensor in tensors)
        self._is_calling = True
        try:
            result = function(*tensors)
        finally:
            self._is_calling = False
        new: list[Made | None] = [self._new(tensor) for tensor in result or ()]
        self.operations.append(Operation(function, named, {}, new, is_many=bool(new)))
        return result

    def _named(self, value: Any) -> Any:
        return self.reference(value) if isinstance(value, Tensor) else value

    def _made(self, tensor: Any) -> Made | None:
        """The name of a new tensor. A constant that is only looked at in another way is a constant, too."""
        if not isinstance(tensor, Tensor):
            return None
        is_seen = tensor.untyped_storage()._cdata in self._storages
        place = self._place(tensor)
        if place in self._known:
            return None
        if is_seen and place[0] not in self._own:
            self._known[place] = self._constant(tensor)
            return None
        return self._new(tensor)

    def _new(self, tensor: Tensor) -> Made:
        made = Made(self._count)
        self._count += 1
        place = self._place(tensor)
        self._known[place] = made
        self._own.add(place[0])
        return made

    def _constant(self, tensor: Tensor) -> Constant:
        self.constants.append(tensor.detach())
        return Constant(len(self.constants) - 1)

    def _place(self, tensor: Tensor) -> tuple[Any, ...]:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._storages:
            self._storages[storage._cdata] = StorageWeakRef(storage)  # so that the number is not given out again
        return storage._cdata, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


def call(function: Called, *tensors: Tensor) -> list[Tensor] | None:
    """Calls a function with some tensors.

    Where a computation is written down, it is called again at this place whenever that is done again, with the tensors
    that are then in the place of these. What it asks of the device is not written down.
    """
    for mode in _get_current_dispatch_mode_stack():  # which autograd hands on to its threads
        if isinstance(mode, Recorder):
            return mode.call(function, tensors)
    return function(*tensors)


def _is_decided_by_values(function: torch._ops.OpOverload, args: Sequence[Any]) -> bool:
    if not any(tag in function.tags for tag in _DECIDED_BY_VALUES):
        return False
    if function.overloadpacket is not torch.ops.aten.index:
        return True
    truths = (one.dtype in (torch.bool, torch.uint8) for one in tree_iter(args[1]) if isinstance(one, Tensor))
    return any(truths)
