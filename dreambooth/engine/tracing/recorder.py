"""Records the tensor operations of a computation while it runs.

What is recorded is what remains of a computation below Python's modules, autograd and autocast: forward and backward
pass alike are a list of PyTorch's operations on tensors. A tensor is identified by its place in memory, as autograd
returns saved tensors as new objects. Storages are referred to weakly, so that nothing lives longer than in the
computation itself.

Code that must run anew each time, as it depends on more than tensors (such as an optimizer's step, which depends on the
count of its steps), is a call: only its place in the list and its tensors are recorded.
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
    """A computation cannot be recorded, as its operations depend on more than the shapes of its inputs."""


@dataclass(frozen=True, slots=True)
class Made:
    """A tensor that is an input of the computation or is created in it."""

    number: int


@dataclass(frozen=True, slots=True)
class Constant:
    """A tensor that existed before the computation; its values may change, but not its place in memory."""

    number: int


Called = Callable[..., "list[Tensor] | None"]  # the tensors that it returns must be new


@dataclass(slots=True)
class Operation:
    """An operation of PyTorch, or a call of a Python function.

    `results` are its outputs: `Made` for new tensors, None for known ones and for what is no tensor.
    """

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: list[Made | None]
    is_many: bool  # whether it returns a sequence

    @property
    def used(self) -> list[Made]:
        return [one for one in tree_iter((self.args, self.kwargs)) if isinstance(one, Made)]

    @property
    def has_effects(self) -> bool:
        """Whether it must run even if its results are not used: it writes, draws random numbers, or is a call."""
        if not isinstance(self.function, torch._ops.OpOverload):
            return True
        return self.function._schema.is_mutable or torch.Tag.nondeterministic_seeded in self.function.tags


class Recorder(TorchDispatchMode):
    """Records all operations until the block ends. Each input must be the only tensor of its storage.

    Raises NotTraceable for an operation whose result's shape depends on values, or whose values Python reads.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.constants: list[Tensor] = []
        self._known: dict[Any, Made | Constant] = {}
        self._storages: dict[int, StorageWeakRef] = {}
        self._own: set[int] = set()  # the storages of inputs and of tensors created here
        self._count = 0
        self._is_calling = False
        self.inputs = [self._new(tensor) for tensor in inputs]

    def reference(self, tensor: Tensor) -> Made | Constant:
        """The reference by which a tensor is recorded."""
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
        if any(results) or operation.has_effects:
            self.operations.append(operation)
        return result

    def call(self, function: Called, tensors: Sequence[Tensor]) -> list[Tensor] | None:
        """Calls a function and records the call; see the function `call` below."""
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
        """The reference of a new tensor; None for a known one. A view of a constant is a constant, too."""
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
            self._storages[storage._cdata] = StorageWeakRef(storage)  # so that its address is not reused
        return storage._cdata, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


def call(function: Called, *tensors: Tensor) -> list[Tensor] | None:
    """Calls a function with some tensors.

    While a computation is recorded, the call is recorded as one operation: each replay calls the function at this
    place, with the tensors that then stand for these. The operations inside the function are not recorded.
    """
    for mode in _get_current_dispatch_mode_stack():  # which autograd passes on to its threads
        if isinstance(mode, Recorder):
            return mode.call(function, tensors)
    return function(*tensors)


def _is_decided_by_values(function: torch._ops.OpOverload, args: Sequence[Any]) -> bool:
    if not any(tag in function.tags for tag in _DECIDED_BY_VALUES):
        return False
    if function.overloadpacket is not torch.ops.aten.index:
        return True
    masks = (one.dtype in (torch.bool, torch.uint8) for one in tree_iter(args[1]) if isinstance(one, Tensor))
    return any(masks)  # indexing by positions does not depend on values, indexing by a mask does
