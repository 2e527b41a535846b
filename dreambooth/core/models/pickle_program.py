"""What a pickle describes, worked out without ever running what is in it.

A pickle is a small program that builds objects and may call anything. Here nothing is looked up or called: each name in
it becomes a mark, and the few marks that describe tensors are worked out by this file. A name that no model needs is
refused, and so is what would take more time or memory than any model does: a file of a few bytes may ask for both.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from dreambooth.core.models.model_file import MAX_SIDES

MAX_PROGRAM_BYTES = 4_000_000  # a full checkpoint with its optimizer takes less than one
MAX_DEPTH = 500  # of things within things; a checkpoint has a dozen levels
_MOST_READS = 1_000_000  # a checkpoint of two thousand tensors takes a tenth
_MOST_HANDED = 1_000_000  # things in the arguments of calls; a checkpoint's tensors have ten each
_MOST_LINE_BYTES = 4096
_LONGEST_NAME = 300
_MOST_VALUES = 2**60
_UNKNOWN = (
    *(pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.LONG4, pickle.NEWOBJ_EX, pickle.PERSID),
    *(pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.OBJ),
)

_STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "storage.UntypedStorage": "U8",
}
_REBUILD = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
_REBUILD_TYPED = "torch._utils._rebuild_tensor_v3"  # of numbers that have no kind of storage of their own
_TYPES = {"torch.float8_e4m3fn": "F8_E4M3", "torch.float8_e5m2": "F8_E5M2"}
_PARAMETER = "torch._utils._rebuild_parameter"
_PARAMETERS = "torch.nn.modules.container.ParameterDict"  # what the first textual inversions lie in
_DICTIONARIES = ("collections.OrderedDict", "collections.defaultdict", "builtins.dict")
# What training scripts leave in their checkpoints beside the weights; none of it is used.
_INERT = ("torch.", "numpy.", "pytorch_lightning.", "lightning.", "omegaconf.", "argparse.Namespace", "pathlib.")
_INERT_BUILTINS = {
    *("builtins.set", "builtins.frozenset", "builtins.list", "builtins.tuple", "builtins.int", "builtins.float"),
    *("builtins.complex", "builtins.bytearray", "builtins.slice", "builtins.object", "typing.Any", "_codecs.encode"),
    *("copyreg._reconstructor", "datetime.datetime", "collections.Counter"),
}


class Refused(Exception):
    def __init__(self, name: str) -> None:
        self.name = name


class _Inert:
    """Stands for an object that nobody needs. Takes whatever the pickle does to it, and keeps nothing."""

    __slots__ = ()

    def append(self, value: object) -> None: ...
    def extend(self, values: object) -> None: ...
    def add(self, value: object) -> None: ...


class _Parameters(dict):  # type: ignore[type-arg]
    """Stands for a module that is a dictionary of tensors."""

    def take(self, state: object) -> None:
        held = state.get("_parameters") if isinstance(state, dict) else None
        self.update(held if isinstance(held, dict) else {})


class _Mark:
    """Stands for a name in the pickle. Calling it describes a tensor, or gives something inert."""

    __slots__ = ("name",)
    name: str

    def __init__(self, name: str) -> None:
        object.__setattr__(self, "name", name)

    def __setattr__(self, name: str, value: object) -> None:
        raise pickle.UnpicklingError

    def __new__(cls, *arguments: object) -> Any:  # the pickle's NEWOBJ calls this on a mark
        if cls is _Mark:
            return object.__new__(cls)
        return _Parameters() if getattr(cls, "name", "") == _PARAMETERS else _Inert()

    def __call__(self, *arguments: Any) -> Any:
        if self.name in _REBUILD:
            storage, offset, shape, stride = arguments[:4]
            return Stored(storage, _number(offset), _numbers(shape), _numbers(stride))
        if self.name == _REBUILD_TYPED:
            storage, offset, shape, stride, kind = *arguments[:4], arguments[6]
            if isinstance(kind, _Mark) and kind.name in _TYPES:
                typed = replace(storage, dtype=_TYPES[kind.name])
                return Stored(typed, _number(offset), _numbers(shape), _numbers(stride))
        if self.name == _PARAMETER:
            return arguments[0]
        if self.name in _DICTIONARIES:
            return _dictionary(arguments[0] if arguments else {})
        return _Inert()


@dataclass(frozen=True)
class Storage:
    dtype: str
    key: str
    values: int


@dataclass(frozen=True)
class Stored:
    """A tensor as the pickle describes it: a part of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def _number(value: Any) -> int:
    """One that counts values of a tensor."""
    if type(value) is not int or not abs(value) < _MOST_VALUES:
        raise pickle.UnpicklingError
    return value


def _numbers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, (tuple, list)) or len(values) > MAX_SIDES:
        raise pickle.UnpicklingError
    return tuple(map(_number, values))


def _dictionary(content: Any) -> dict[Any, Any]:
    """A dictionary from another one, or from pairs as Python 2 has it; empty from anything else."""
    pairs = content.items() if isinstance(content, dict) else content if isinstance(content, list) else ()
    return {_key(key): value for key, value in pairs}


def _key(key: Any) -> Any:
    """A key that takes no time to look up: tuples within tuples take twice as long with each level, and of numbers
    there are any number that Python cannot tell apart but one by one. The types of callbacks are some files' keys."""
    if isinstance(key, int):
        return _number(key)
    if not isinstance(key, (str, bytes, float, _Mark, _Inert, type(None))):
        raise pickle.UnpicklingError
    return key


class Program(io.BytesIO):
    """The pickle's bytes, which end where it has done more than any model asks for."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > _MOST_READS:
            raise pickle.UnpicklingError
        return super().read(size)

    def readline(self, size: int | None = -1, /) -> bytes:
        return super().readline(_MOST_LINE_BYTES)


class Unpickler(pickle._Unpickler):
    """Python's own unpickler in Python: unlike the one in C, a forged memo index costs it no memory. What can take time
    or memory beyond the length of the pickle, and no model has, it does not know."""

    dispatch: ClassVar[dict[int, Any]] = {
        code: load for code, load in pickle._Unpickler.dispatch.items() if bytes([code]) not in _UNKNOWN
    }

    def __init__(self, program: Program) -> None:
        super().__init__(program, encoding="latin1")
        self._handed = 0
        self.storages: dict[str, Storage] = {}  # all that are named, also by what is inert

    def load_mark(self) -> None:
        if len(self.metastack) > MAX_DEPTH:  # type: ignore[attr-defined]
            raise pickle.UnpicklingError
        super().load_mark()  # type: ignore[misc]

    def load_frame(self) -> None:
        """Frames are there for speed alone."""
        self.read(8)  # type: ignore[attr-defined]

    def load_dict(self) -> None:
        items = self.pop_mark()  # type: ignore[attr-defined]
        self.append(_dictionary(list(zip(items[::2], items[1::2], strict=True))))  # type: ignore[attr-defined]

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()  # type: ignore[attr-defined]
        self._set(self.stack[-1], [key, value])  # type: ignore[attr-defined]

    def load_setitems(self) -> None:
        items = self.pop_mark()  # type: ignore[attr-defined]
        self._set(self.stack[-1], items)  # type: ignore[attr-defined]

    def _set(self, held: Any, items: list[Any]) -> None:
        if isinstance(held, dict):
            held.update(_dictionary(list(zip(items[::2], items[1::2], strict=True))))
        elif not isinstance(held, _Inert):
            raise pickle.UnpicklingError

    def load_set(self) -> None:
        self.append(_Inert())  # type: ignore[attr-defined]

    def load_frozenset(self) -> None:
        self.pop_mark()  # type: ignore[attr-defined]
        self.load_set()

    def load_reduce(self) -> None:
        self._hand(self.stack[-1])  # type: ignore[attr-defined]
        super().load_reduce()  # type: ignore[misc]

    def load_newobj(self) -> None:
        self._hand(self.stack[-1])  # type: ignore[attr-defined]
        super().load_newobj()  # type: ignore[misc]

    def load_inst(self) -> None:
        """Only pickles of Python 2's own classes have it; what it names is told where that is hostile."""
        module, name = (self.readline()[:-1].decode("ascii") for _ in range(2))  # type: ignore[attr-defined]
        self.find_class(module, name)
        raise pickle.UnpicklingError

    def load_build(self) -> None:
        """What else has a state has it beside what it holds, as a dictionary its version."""
        state = self.stack.pop()  # type: ignore[attr-defined]
        built = self.stack[-1]  # type: ignore[attr-defined]
        if isinstance(built, _Parameters):
            self._hand((state, state.get("_parameters") if isinstance(state, dict) else None))
            built.take(state)
        elif not isinstance(built, (_Inert, dict)):
            raise pickle.UnpicklingError

    def _hand(self, arguments: Any) -> None:
        """Counts what is handed over, which may be the same many times. What stands behind the first few arguments of a
        call is not looked at by any."""
        if not isinstance(arguments, tuple):
            raise pickle.UnpicklingError
        sized = [arguments, *arguments[:MAX_SIDES]]
        self._handed += sum(len(one) for one in sized if isinstance(one, (tuple, list, dict)))
        if self._handed > _MOST_HANDED:
            raise pickle.UnpicklingError

    dispatch.update(
        {
            pickle.MARK[0]: load_mark,
            pickle.FRAME[0]: load_frame,
            pickle.DICT[0]: load_dict,
            pickle.SETITEM[0]: load_setitem,
            pickle.SETITEMS[0]: load_setitems,
            pickle.EMPTY_SET[0]: load_set,
            pickle.FROZENSET[0]: load_frozenset,
            pickle.REDUCE[0]: load_reduce,
            pickle.NEWOBJ[0]: load_newobj,
            pickle.INST[0]: load_inst,
            pickle.BUILD[0]: load_build,
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if len(module) + len(name) > _LONGEST_NAME:
            raise pickle.UnpicklingError
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"
        known = full in _INERT_BUILTINS or full in _DICTIONARIES or full in _REBUILD
        if not known and not full.startswith(_INERT):
            raise Refused(full)
        return _Mark(full)

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "module":  # a class of PyTorch's, with its text, as older files have it
            return _Inert()
        kind, mark, key, _, count = pid[:5]
        if kind != "storage" or not isinstance(mark, _Mark) or not isinstance(key, str):
            raise pickle.UnpicklingError
        storage = Storage(_STORAGES[mark.name.removeprefix("torch.")], key, _number(count))
        self.storages[key] = storage
        return storage
