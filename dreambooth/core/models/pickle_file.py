"""The table of contents of a .ckpt file, read without ever running what is in it.

A .ckpt is a pickle (pickle_program.py) that describes its tensors. The weights themselves lie beside it as plain bytes:
in a zip archive (PyTorch since 1.6), or one after another behind it.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from dreambooth.core.errors import UserError
from dreambooth.core.models.model_file import BYTES_PER_VALUE, Header, Tensor
from dreambooth.core.models.pickle_program import MAX_PROGRAM_BYTES, Program, Refused, Stored, Unpickler

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
    except Refused as refused:
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


def _read_zip(path: Path, file: BinaryIO) -> dict[str, Tensor]:
    with zipfile.ZipFile(file) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        program = next((name for name in entries if name.endswith("/data.pkl") or name == "data.pkl"), None)
        if program is None or entries[program].file_size > MAX_PROGRAM_BYTES:
            raise pickle.UnpicklingError
        folder = program[: -len("data.pkl")]
        held = {name: info for name, info in entries.items() if name == program or name.startswith(f"{folder}data/")}
        if any(
            info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size for info in held.values()
        ):
            raise UserError(f"{path}: its weights are compressed; unpack and save it again, or get the .safetensors.")
        content = Unpickler(Program(archive.read(program))).load()
        places = {}
        for name, info in held.items():
            if name != program:
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
    program = Program(file.read(MAX_PROGRAM_BYTES))
    unpicklers = [Unpickler(program) for _ in range(5)]
    magic, _, _, content, keys = (unpickler.load() for unpickler in unpicklers)
    if magic != _LEGACY_MAGIC or not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise pickle.UnpicklingError
    storages, places, position = unpicklers[3].storages, {}, program.tell()
    for key in keys:
        size = storages[key].values * BYTES_PER_VALUE[storages[key].dtype]
        places[key] = (position + 8, size)
        position += 8 + size
    return _place(content, path, places)


def _place(content: Any, path: Path, places: Mapping[str, tuple[int, int]]) -> dict[str, Tensor]:
    """The weights of the file: {name: Tensor}, from the first level that holds any."""
    weights = content
    for level in ("state_dict", "model", "params_ema", "string_to_param"):
        if isinstance(weights, dict) and isinstance(weights.get(level), dict):
            weights = weights[level]
            break
    if not isinstance(weights, dict):
        raise pickle.UnpicklingError
    return {str(name): _tensor(one, path, places) for name, one in weights.items() if isinstance(one, Stored)}


def _tensor(one: Stored, path: Path, places: Mapping[str, tuple[int, int]]) -> Tensor:
    width = BYTES_PER_VALUE[one.storage.dtype]
    start, size = places[one.storage.key]
    if len(one.stride) != len(one.shape) or min((*one.shape, *one.stride, one.offset), default=0) < 0:
        raise pickle.UnpicklingError
    empty = 0 in one.shape
    reach = 0 if empty else 1 + sum((side - 1) * step for side, step in zip(one.shape, one.stride))
    first, last = start + one.offset * width, start + (one.offset + reach) * width
    if last > start + size:
        raise pickle.UnpicklingError
    usual, step = list[int](), 1
    for side in reversed(one.shape):
        usual.append(step)
        step *= side
    plain = empty or all(side == 1 or a == b for side, a, b in zip(one.shape, one.stride, reversed(usual)))
    return Tensor(one.storage.dtype, one.shape, path, first, last, None if plain else one.stride)
