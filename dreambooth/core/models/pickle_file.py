"""The table of contents of a .ckpt file, read without ever running what is in it.

A .ckpt is a pickle: a small program that builds objects and may call anything. Here nothing is looked up or called:
each name in the pickle becomes a mark, and the few marks that describe tensors are worked out by this file. A name that
no model needs is refused. The weights themselves lie beside the pickle as plain bytes: in a zip archive (PyTorch since
1.6), or one after another behind it.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from dreambooth.core.errors import UserError
from dreambooth.core.models.model_file import BYTES_PER_VALUE, Header, Tensor

MAX_PROGRAM_BYTES = 4_000_000  # a full checkpoint with its optimizer takes less than one
MAX_DEPTH = 500  # of things within things; a checkpoint has a dozen levels

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
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_DAMAGED = "this file is damaged or no model; download or copy it again."
_WRONG = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, EOFError, OSError, ValueError, KeyError, IndexError, TypeError),
    *(AttributeError, OverflowError, RecursionError, MemoryError, UnicodeDecodeError, NotImplementedError),
    *(struct.error, zlib.error, AssertionError, RuntimeError),
)


def read_pickle(path: Path) -> Header:
    """The tensors of a .ckpt file. Raises UserError for a file that is damaged, or that wants to run code."""
    try:
        with open(path, "rb") as file:
            zipped = zipfile.is_zipfile(file)
            file.seek(0)
            content = _read_zip(path, file) if zipped else _read_legacy(path, file)
            size = path.stat().st_size
    except _Refused as refused:
        raise UserError(
            f"{path}: this file wants to run {refused.name} when it is opened, which a model has no need of; "
            "it was not opened. Get the .safetensors version from its author."
        ) from None
    except OSError as error:
        raise UserError(f"{path}: the file cannot be read ({error.strerror or error}).") from None
    except _WRONG:
        raise UserError(f"{path}: {_DAMAGED}") from None
    tensors = dict(sorted(content.items()))
    if any(t.end > size or t.start < 0 for t in tensors.values()):
        raise UserError(f"{path}: the file is cut short; download or copy it again.")
    return Header(path, tensors)


class _Refused(Exception):
    def __init__(self, name: str) -> None:
        self.name = name


class _Inert:
    """Stands for an object that nobody needs. Takes whatever the pickle does to it, and keeps nothing."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None: ...
    def __setitem__(self, key: object, value: object) -> None: ...
    def append(self, value: object) -> None: ...
    def extend(self, values: object) -> None: ...
    def add(self, value: object) -> None: ...


class _Parameters(dict):  # type: ignore[type-arg]
    """Stands for a module that is a dictionary of tensors."""

    def __setstate__(self, state: object) -> None:
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
            return _Stored(storage, int(offset), tuple(map(int, shape)), tuple(map(int, stride)))
        if self.name == _PARAMETER:
            return arguments[0]
        if self.name in _DICTIONARIES:
            return dict(*arguments[:1]) if arguments and isinstance(arguments[0], (list, dict)) else {}
        return _Inert()


@dataclass(frozen=True)
class _Storage:
    dtype: str
    key: str
    values: int


@dataclass(frozen=True)
class _Stored:
    """A tensor as the pickle describes it: a part of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Unpickler(pickle._Unpickler):
    """Python's own unpickler in Python: unlike the one in C, a forged memo index costs it no memory."""

    def load_mark(self) -> None:
        if len(self.metastack) > MAX_DEPTH:  # type: ignore[attr-defined]
            raise pickle.UnpicklingError
        super().load_mark()  # type: ignore[misc]

    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch, pickle.MARK[0]: load_mark}

    def find_class(self, module: str, name: str) -> Any:
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"
        known = full in _INERT_BUILTINS or full in _DICTIONARIES or full in _REBUILD
        if not known and not full.startswith(_INERT):
            raise _Refused(full)
        return _Mark(full)

    def persistent_load(self, pid: Any) -> Any:
        kind, mark, key, _, count = pid[:5]
        if kind != "storage" or not isinstance(mark, _Mark):
            raise pickle.UnpicklingError
        return _Storage(_STORAGES[mark.name.removeprefix("torch.")], str(key), int(count))


def _read_zip(path: Path, file: BinaryIO) -> dict[str, Tensor]:
    with zipfile.ZipFile(file) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        program = next((name for name in entries if name.endswith("/data.pkl") or name == "data.pkl"), None)
        if program is None or entries[program].file_size > MAX_PROGRAM_BYTES:
            raise pickle.UnpicklingError
        content = _Unpickler(io.BytesIO(archive.read(program)), encoding="latin1").load()
        folder = program[: -len("data.pkl")]
        places = {}
        for name, info in entries.items():
            if name.startswith(f"{folder}data/"):
                if info.compress_type != zipfile.ZIP_STORED:
                    raise UserError(
                        f"{path}: its weights are compressed; unpack and save it again, or get the .safetensors."
                    )
                places[name[len(folder) + 5 :]] = (_data_start(file, info), info.file_size)
    return _place(content, path, places)


def _data_start(file: BinaryIO, info: zipfile.ZipInfo) -> int:
    """Where an archive's member begins: behind its own header, whose last two fields are lengths (PKWARE, 4.3.7)."""
    file.seek(info.header_offset)
    local = file.read(30)
    if local[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile
    return info.header_offset + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")


def _read_legacy(path: Path, file: BinaryIO) -> dict[str, Tensor]:
    """PyTorch before 1.6: magic number, version, machine, content, keys; then each storage behind its length."""
    start = io.BytesIO(file.read(MAX_PROGRAM_BYTES))
    magic, _, _, content, keys = (_Unpickler(start, encoding="latin1").load() for _ in range(5))
    if magic != _LEGACY_MAGIC or not isinstance(keys, list):
        raise pickle.UnpicklingError
    sizes: dict[str, int] = {}
    _collect_sizes(content, sizes)
    places, position = {}, start.tell()
    for key in keys:
        places[str(key)] = (position + 8, sizes.get(str(key), 0))
        position += 8 + sizes.get(str(key), 0)
    return _place(content, path, places)


def _collect_sizes(content: Any, sizes: dict[str, int]) -> None:
    for item in _walk(content):
        if isinstance(item, _Stored) and isinstance(item.storage, _Storage):
            sizes[item.storage.key] = item.storage.values * BYTES_PER_VALUE[item.storage.dtype]


def _walk(content: Any) -> list[Any]:
    """Everything inside dictionaries, lists and tuples, each object once."""
    found, waiting, seen = [], [content], set()
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        found.append(item)
        if isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, (list, tuple)):
            waiting += item
    return found


def _place(content: Any, path: Path, places: Mapping[str, tuple[int, int]]) -> dict[str, Tensor]:
    """The weights of the file: {name: Tensor}, from the first level that holds any."""
    weights = content
    for level in ("state_dict", "model", "params_ema", "string_to_param"):
        if isinstance(weights, dict) and isinstance(weights.get(level), dict):
            weights = weights[level]
            break
    if not isinstance(weights, dict):
        raise pickle.UnpicklingError
    return {str(name): _tensor(one, path, places) for name, one in weights.items() if isinstance(one, _Stored)}


def _tensor(one: _Stored, path: Path, places: Mapping[str, tuple[int, int]]) -> Tensor:
    width = BYTES_PER_VALUE[one.storage.dtype]
    start, size = places[one.storage.key]
    if len(one.stride) != len(one.shape) or min((*one.shape, *one.stride, one.offset), default=0) < 0:
        raise pickle.UnpicklingError
    empty = 0 in one.shape
    reach = 0 if empty else 1 + sum((side - 1) * step for side, step in zip(one.shape, one.stride))
    first, last = start + one.offset * width, start + (one.offset + reach) * width
    if last > start + size:
        raise pickle.UnpicklingError
    usual: list[int] = []
    step = 1
    for side in reversed(one.shape):
        usual.insert(0, step)
        step *= side
    plain = empty or all(side == 1 or a == b for side, a, b in zip(one.shape, one.stride, usual))
    return Tensor(one.storage.dtype, one.shape, path, first, last, None if plain else one.stride)
