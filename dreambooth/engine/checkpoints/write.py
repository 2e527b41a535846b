"""Writing model files one tensor at a time: peak memory is one tensor, not the model twice."""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Callable
from io import RawIOBase
from pathlib import Path
from typing import BinaryIO

import psutil
from torch import Tensor

from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic, file_names
from dreambooth.core.models import checkpoint
from dreambooth.core.models.model_file import PICKLES
from dreambooth.core.models.model_file import Tensor as Place
from dreambooth.engine.checkpoints import write_pickle
from dreambooth.engine.checkpoints.entry import Entry
from dreambooth.engine.checkpoints.source import DTYPES

PARTIAL = ".partial"  # in the name of a file that is being written, after the number of the process
_NOTHING = contextlib.nullcontext()
_PIECE_BYTES = 1 << 22
_ALIGNMENT = 64  # bytes, a line of a CPU's cache: some CPUs round otherwise where a weight lies elsewhere in one
_SPELLED = {dtype: name for name, dtype in DTYPES.items()}


def write_tensors(target: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Plain tensors to a file, as they are."""
    write(target, {name: Entry.of(tensor) for name, tensor in tensors.items()}, metadata)


def write(
    target: Path,
    entries: dict[str, Entry],
    metadata: dict[str, str],
    within: write_pickle.Within | None = None,
    beside: contextlib.AbstractContextManager[None] = _NOTHING,
) -> None:
    """Writes a .safetensors, .ckpt or .pt file under a temporary name, reads its contents back and moves it into place.
    What is no .safetensors has no metadata; `within` says what its tensors lie in, where that is not a `state_dict`;
    within `beside` the file is moved.

    Raises UserError if it cannot be written, or if there is a file of this name: none is ever overwritten.
    """
    staged = target.with_name(file_names.cut(f".{os.getpid()}.{target.stem}", f"{PARTIAL}{target.suffix}"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(staged, "wb") as file:
            if target.suffix.lower() in PICKLES:
                entries = write_pickle.widened(entries)
                sums = write_pickle.write(file, entries, **({"within": within} if within else {}))
            else:
                sums = _write_safetensors(file, entries, metadata)
            file.flush()
            os.fsync(file.fileno())
        if not _is_as_meant(staged, entries, sums):
            raise UserError(f"{target}: what was written is not what is read back; look at the disk, and try again.")
        with beside:
            _move_to_free_name(staged, target)
        atomic.sync_folder(target.parent)
    except OSError as error:
        raise UserError(_explain(error, staged, target)) from None
    finally:
        atomic.discard(staged)


def _explain(error: OSError, staged: Path, target: Path) -> str:
    """What an error says of a file that was being written, or of one that its tensors were being read from."""
    if error.filename and (file := Path(error.filename)) not in (staged, target, *target.parents):
        return f"{file}: the file cannot be read ({error.strerror}), so {target} is not written; put it back."
    return f"{target}: the file cannot be written ({error.strerror})."


def sweep(folder: Path) -> None:
    """Removes what engines that were killed have half written into a folder; those that are at work keep theirs."""
    for path in folder.glob(f".*{PARTIAL}.*"):
        number = path.name.split(".")[1]
        if number.isdecimal() and not psutil.pid_exists(int(number)):
            atomic.discard(path)


def free_name(
    folder: Path, stem: str, suffix: str = ".safetensors", is_taken: Callable[[str], bool] = lambda stem: False
) -> Path:
    """`stem` in `folder`, or with -2, -3, ... where that is taken there or elsewhere."""
    name, number = stem, 2
    while (folder / f"{name}{suffix}").exists() or is_taken(name):
        name, number = f"{stem}-{number}", number + 1
    return folder / f"{name}{suffix}"


def _write_safetensors(file: BinaryIO, entries: dict[str, Entry], metadata: dict[str, str]) -> dict[str, int]:
    """Returns the CRC-32 of each tensor. Those of larger numbers come first, so that each lies at a multiple of its
    numbers' size, as in files of the safetensors library."""
    entries = dict(sorted(entries.items(), key=lambda item: -item[1].dtype.itemsize))
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name, entry in entries.items():
        places = [offset, offset + entry.bytes]
        header[name] = {"dtype": _SPELLED[entry.dtype], "shape": entry.shape, "data_offsets": places}
        offset += entry.bytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    file.write(len(text).to_bytes(8, "little") + text)
    sums = {}
    for name, entry in entries.items():
        content = entry.content()
        file.write(content)
        sums[name] = zlib.crc32(content)
    return sums


def _is_as_meant(path: Path, entries: dict[str, Entry], sums: dict[str, int]) -> bool:
    """Whether a file holds the tensors that were written, each byte of them. Holds a piece of one in memory."""
    try:
        tensors = checkpoint.read_header(path).tensors
    except UserError:
        return False
    kinds = {name: (one.dtype, one.shape, one.stride) for name, one in tensors.items()}
    if kinds != {name: (_SPELLED[entry.dtype], tuple(entry.shape), None) for name, entry in entries.items()}:
        return False
    piece = memoryview(bytearray(_PIECE_BYTES))
    with open(path, "rb", buffering=0) as file:
        return all(_sum(file, tensors[name], piece) == sums[name] for name in entries)


def _sum(file: RawIOBase, tensor: Place, piece: memoryview) -> int:
    """The CRC-32 of a tensor as it lies in its file."""
    file.seek(tensor.start)
    left, found = tensor.end - tensor.start, 0
    while left and (count := file.readinto(piece[:left])):
        found, left = zlib.crc32(piece[:count], found), left - count
    return found


def _move_to_free_name(staged: Path, target: Path) -> None:
    if target.exists():
        raise UserError(f"{target}: there is a file of this name already; it was not overwritten.")
    atomic.move(staged, target)
