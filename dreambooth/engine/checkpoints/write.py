"""Writing .safetensors files one tensor at a time: peak memory is one tensor, not the model twice."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from dreambooth.core import atomic, checkpoint
from dreambooth.core.errors import UserError

_DTYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_TORCH = {name: dtype for dtype, name in _DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """A tensor to be written: what it will look like, and how to get it when its turn comes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    get: Callable[[], Tensor]


def write_checkpoint(
    target: Path, source: Path, trained: dict[str, Tensor], metadata: dict[str, str], *, half: bool
) -> None:
    """The source checkpoint with the `trained` tensors ({original key: tensor}) in place of its own.

    All other tensors are taken over bit for bit, except that `half` makes 32-bit ones 16-bit.
    The source's EMA weights are left out, as they belong to the untrained model.
    """
    with safe_open(source, framework="pt") as file:
        header = checkpoint.read_header(source)
        entries: dict[str, Entry] = {}
        for name, tensor in header.tensors.items():
            canonical = name if name in trained else _canonical(name, trained)
            if name.startswith(checkpoint.EMA):
                continue
            if canonical in trained:
                entries[name] = _entry(trained[canonical], tensor.shape, half=half)
            else:
                entries[name] = _copied(file, name, tensor, half=half)
        left_over = set(trained) - {name if name in trained else _canonical(name, trained) for name in entries}
        if left_over:
            raise UserError(f"{source}: the file has changed since training began ({sorted(left_over)[0]} is gone).")
        write(target, entries, metadata)


def write_tensors(target: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Plain tensors to a file, as they are."""
    entries = {name: Entry(t.dtype, tuple(t.shape), lambda t=t: t) for name, t in tensors.items()}
    write(target, entries, metadata)


def write(target: Path, entries: dict[str, Entry], metadata: dict[str, str]) -> None:
    """Writes to a temporary name, reads the header back and moves the file into place; never over another file."""
    header: dict[str, object] = {"__metadata__": metadata}
    offset = 0
    for name, entry in entries.items():
        size = entry.dtype.itemsize * _count(entry.shape)
        header[name] = {"dtype": _DTYPES[entry.dtype], "shape": entry.shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with open(staged, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for entry in entries.values():
                file.write(_bytes(entry.get().to(entry.dtype)))
            file.flush()
            os.fsync(file.fileno())
        checkpoint.read_header(staged)
        _move_to_free_name(staged, target)
    except OSError as error:
        raise UserError(f"{target}: the file cannot be written ({error.strerror}).") from None
    finally:
        staged.unlink(missing_ok=True)
    atomic.sync_folder(target.parent)


def free_name(folder: Path, stem: str, suffix: str = ".safetensors") -> Path:
    """`stem` in `folder`, or with -2, -3, ... where that is taken."""
    path, number = folder / f"{stem}{suffix}", 2
    while path.exists():
        path, number = folder / f"{stem}-{number}{suffix}", number + 1
    return path


def _move_to_free_name(staged: Path, target: Path) -> None:
    if target.exists():
        raise UserError(f"{target}: there is a file of this name already; it was not overwritten.")
    os.replace(staged, target)


def _canonical(name: str, trained: Iterable[str]) -> str:
    longer = name.replace("cond_stage_model.transformer.", "cond_stage_model.transformer.text_model.", 1)
    return longer if longer in trained else name


def _entry(tensor: Tensor, shape: tuple[int, ...], *, half: bool) -> Entry:
    dtype = torch.float16 if half else torch.float32
    return Entry(dtype, shape, lambda: tensor.detach().to("cpu", dtype).reshape(shape))


def _copied(file: safe_open, name: str, tensor: checkpoint.Tensor, *, half: bool) -> Entry:
    dtype = _TORCH[tensor.dtype]
    if half and dtype == torch.float32:
        dtype = torch.float16
    return Entry(dtype, tensor.shape, lambda: file.get_tensor(name))


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count
