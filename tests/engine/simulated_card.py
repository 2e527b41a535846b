"""A card simulated on the CPU: its tensors are known to lie there, and do not mix with those in ordinary memory.

Everything is computed on the CPU, so that numbers are right; what is simulated is *where* they lie. A tensor is on
the card if its storage is: what was made there, moved there, or computed from what is there. As with a real card, an
operation on tensors of both places ends in an error, but for single numbers; so does handing a tensor of the card to
NumPy, and drawing random numbers there with a generator of the CPU. What runs through is not proven to work on
a card, but what fails here fails there, too.
"""

from __future__ import annotations

import contextlib
import functools
import types
import weakref
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from dreambooth.engine.process import probe
from dreambooth.engine.tracing.program import Program

CARD, CPU = torch.device("cuda", 0), torch.device("cpu")
BYTES = 24 * 2**30
_MAY_MIX = {"copy_", "_copy_from", "set_"}
_INDEXED = {"index", "index_put", "index_put_"}  # indices may lie in the computer's memory
_TO_NUMPY = {"numpy", "__array__"}


class SimulatedCard:
    """Which tensors lie on the card, and which in memory that is pinned."""

    device, says = CARD, "cuda:0"
    kind, title = "cuda", "is_cuda"  # and how PyTorch asks a tensor for it

    def __init__(self) -> None:
        self.lying: dict[int, StorageWeakRef] = {}
        self.pinned: dict[int, StorageWeakRef] = {}
        self.generators: weakref.WeakSet[Any] = weakref.WeakSet()
        self.operations = 0

    def has(self, tensor: Tensor) -> bool:
        return _key(tensor) in self.lying

    def put(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self.lying[storage._cdata] = StorageWeakRef(storage)  # held, so that the number is not given out again
        return tensor

    def pin(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self.pinned[storage._cdata] = StorageWeakRef(storage)
        return tensor

    def device_of(self, tensor: Tensor, plain: torch.device) -> torch.device:
        return self.device if plain.type == "cpu" and self.has(tensor) else plain

    def is_here(self, place: Any) -> bool:
        return place is not None and torch.device(place).type == self.kind

    def computing(self, kind: str) -> str:
        """The kind of device that computes what another seems to."""
        return "cpu" if kind == self.kind else kind

    def check_operation(self, function: Any, kwargs: dict[str, Any]) -> None:
        """Refuses what the card cannot do."""

    def check_late(self) -> None:
        """Refuses a copy between the two places that nobody waits for."""

    def patches(self) -> list[tuple[Any, str, Any]]:
        """What there is of it in PyTorch: where, as what, which."""
        return [(torch.cuda, name, value) for name, value in _CUDA.items()]


def _key(tensor: Tensor) -> int:
    key: int = tensor.untyped_storage()._cdata
    return key


class _Operations(TorchDispatchMode):
    """What is computed from tensors of the card lies there; tensors of both places do not mix."""

    def __init__(self, card: SimulatedCard) -> None:
        super().__init__()
        self.card = card
        self.is_again = False  # a record is done again: where it makes something anew is not in it, but is the card

    def again(self, run: Any) -> Any:
        """A program's run that makes what it makes on the card."""

        @functools.wraps(run)
        def done_again(*args: Any) -> Any:
            self.is_again = True
            try:
                return run(*args)
            finally:
                self.is_again = False

        return done_again

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__ if isinstance(function, torch._ops.OpOverload) else str(function)
        given = args[:1] if name in _INDEXED else (args, kwargs)
        tensors = [one for one in tree_iter(given) if isinstance(one, Tensor) and one.layout == torch.strided]
        there = [one for one in tensors if self.card.has(one)]
        here = [one for one in tensors if one.dim() and one.device.type == "cpu"]
        if there and here and name not in _MAY_MIX:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but {name} got {self.card.says} and cpu."
            )
        if there and here and name == "copy_" and (kwargs.get("non_blocking") or True in args[2:]):
            self.card.check_late()
        if there:
            self.card.check_operation(function, kwargs)
        result = function(*args, **kwargs)
        self.card.operations += bool(there)
        if (there or self.is_again) and name not in _MAY_MIX:
            for one in tree_iter(result):
                if isinstance(one, Tensor):
                    self.card.put(one)
        return result


class _Functions(TorchFunctionMode):
    """What asks for a place: factories, `to` and its kin, pinning."""

    def __init__(self, card: SimulatedCard) -> None:
        super().__init__()
        self.card = card

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if isinstance(function, torch._ops.OpOverload):  # asked for already, and only handed on by another mode
            return function(*args, **kwargs)
        name = getattr(function, "__name__", "")
        if (special := getattr(self, f"_{name}", None)) and args and isinstance(args[0], Tensor):
            return special(function, args, kwargs)
        if name in _TO_NUMPY and isinstance(args[0], Tensor) and self.card.has(args[0]):
            raise TypeError(f"can't convert {self.card.says} device type tensor to numpy. Use Tensor.cpu() first.")
        place = kwargs.get("device")
        pins = bool(kwargs.pop("pin_memory", False))
        if self.card.is_here(place):
            kwargs["device"] = CPU
            self._check_generator(name, kwargs, self.card.device)
            return self.card.put(function(*args, **kwargs))
        if place is not None and torch.device(place).type == "cpu" and args and isinstance(args[0], Tensor):
            kwargs["device"] = CPU  # as *_like and new_* of a tensor of the card
            made = function(*args, **kwargs)
            return self._taken_off(made)
        result = function(*args, **kwargs)
        if pins:
            self.card.pin(result)
        return result

    def _check_generator(self, name: str, kwargs: dict[str, Any], place: torch.device) -> None:
        generator = kwargs.get("generator")
        if generator is not None and (generator in self.card.generators) != self.card.is_here(place):
            raise RuntimeError(f"Expected a '{place.type}' device type for generator ({name}).")

    def _taken_off(self, tensor: Tensor) -> Tensor:
        self.card.lying.pop(_key(tensor), None)
        return tensor

    def _moved(
        self, tensor: Tensor, place: torch.device | None, dtype: torch.dtype | None, kwargs: dict[str, Any]
    ) -> Tensor:
        is_late = kwargs.get("non_blocking", False)
        kwargs = {name: value for name, value in kwargs.items() if name in ("copy", "memory_format")}
        plain = tensor.untyped_storage().device
        if plain.type != "cpu" or (place is not None and place.type not in ("cpu", self.card.kind)):
            return _TO(tensor, *(one for one in (place, dtype) if one is not None), **kwargs)
        goes = place is not None and self.card.is_here(place) != self.card.has(tensor)
        if goes and is_late:
            self.card.check_late()
        on_card = self.card.has(tensor) != goes
        kwargs["copy"] = kwargs.get("copy", False) or goes
        moved = _TO(tensor, dtype or tensor.dtype, **kwargs)
        if moved is tensor:
            return tensor
        if moved.requires_grad and goes:  # its gradient goes back to where it came from
            moved.register_hook(lambda gradient: self._moved(gradient, CPU if on_card else self.card.device, None, {}))
        return self.card.put(moved) if on_card else self._taken_off(moved)

    def _to(self, function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        tensor, *more = args
        place, dtype = kwargs.pop("device", None), kwargs.pop("dtype", None)
        for one in more:
            if isinstance(one, torch.dtype):
                dtype = one
            elif isinstance(one, Tensor):
                place, dtype = one.device, one.dtype
            elif isinstance(one, (str, torch.device, int)) and not isinstance(one, bool):
                place = one
        return self._moved(tensor, None if place is None else torch.device(place), dtype, kwargs)

    def _cpu(self, function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return self._moved(args[0], CPU, None, {})

    def _cuda(self, function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return self._moved(args[0], self.card.device, None, {})

    def _pin_memory(self, function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if self.card.has(args[0]):
            raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
        return self.card.pin(args[0].clone())

    def _is_pinned(self, function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return _key(args[0]) in self.card.pinned


_TO = Tensor.to


class _Stream:
    """All work is done when it is asked for."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


_CUDA: dict[str, Any] = {  # of torch.cuda, with a card that is never full and never late
    "is_available": lambda: True,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "set_device": lambda device: None,
    "get_device_name": lambda device=None: "a simulated card",
    "get_device_capability": lambda device=None: (8, 9),
    "get_device_properties": lambda device=None: types.SimpleNamespace(
        name="a simulated card", total_memory=BYTES, major=8, minor=9, multi_processor_count=80
    ),
    "is_bf16_supported": lambda including_emulation=True: True,
    "mem_get_info": lambda device=None: (BYTES, BYTES),
    "get_per_process_memory_fraction": lambda device=None: 1.0,
    "memory_allocated": lambda device=None: 0,
    "memory_reserved": lambda device=None: 0,
    "max_memory_allocated": lambda device=None: 0,
    "max_memory_reserved": lambda device=None: 0,
    "reset_peak_memory_stats": lambda device=None: None,
    "synchronize": lambda device=None: None,
    "empty_cache": lambda: None,
    "ipc_collect": lambda: None,
    "manual_seed": lambda seed: None,
    "manual_seed_all": lambda seed: None,
    "get_rng_state": lambda device=None: torch.get_rng_state(),
    "set_rng_state": lambda state, device=None: None,
    "get_rng_state_all": lambda: [torch.get_rng_state()],
    "set_rng_state_all": lambda states: None,
    "current_stream": lambda device=None: _Stream(),
    "Stream": _Stream,
    "Event": _Stream,
    "is_current_stream_capturing": lambda: False,
    "stream": lambda stream: contextlib.nullcontext(),
}


@contextlib.contextmanager
def simulated_card(simulated: type[SimulatedCard] = SimulatedCard) -> Iterator[SimulatedCard]:
    """Within it there is such a card, for PyTorch and for what asks PyTorch."""
    card = simulated()
    operations, functions = _Operations(card), _Functions(card)
    device, autocast, run_backward = Tensor.device, torch.autocast.__init__, torch.autograd._engine_run_backward
    is_autocast, autocast_dtype = torch.is_autocast_enabled, torch.get_autocast_dtype

    def backward(*args: Any, **kwargs: Any) -> Any:
        """What is worked out anew on the way back asks for places, too."""
        with functions:
            return run_backward(*args, **kwargs)

    class Generator(torch.Generator):  # type: ignore[misc, valid-type]
        def __new__(cls, device: Any = "cpu") -> Any:
            return super().__new__(cls, "cpu")

        def __init__(self, device: Any = "cpu") -> None:
            self.place = torch.device(device)
            if card.is_here(self.place):
                card.generators.add(self)

        @property
        def device(self) -> torch.device:  # type: ignore[override]
            return self.place

    patches = [
        *card.patches(),
        (torch, "Generator", Generator),
        (torch, "is_autocast_enabled", lambda kind=None: is_autocast(card.computing(kind)) if kind else is_autocast()),
        (torch, "get_autocast_dtype", lambda kind: autocast_dtype(card.computing(kind))),
        (
            torch.autocast,
            "__init__",
            lambda own, device_type, *args, **more: autocast(own, card.computing(device_type), *args, **more),
        ),
        (torch.autograd, "_engine_run_backward", backward),
        (probe, "fault", lambda choice, device, tried: tried()),  # it is in this process alone
        (probe, "ask", lambda choices, device: None),
        (Program, "__call__", operations.again(Program.__call__)),
    ]
    with contextlib.ExitStack() as stack:
        for owner, name, value in patches:
            stack.enter_context(mock.patch.object(owner, name, value))
        Tensor.device = property(lambda own: card.device_of(own, device.__get__(own)))  # type: ignore
        setattr(Tensor, card.title, property(card.has))
        try:
            with operations, functions:
                yield card
        finally:
            del Tensor.device
            delattr(Tensor, card.title)
