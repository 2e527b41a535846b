"""Writing a .ckpt or .pt file: the zip archive that torch.load reads, holding no more than one tensor in memory."""

from __future__ import annotations

import collections
import io
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any, BinaryIO

import torch

from dreambooth.engine.checkpoints.entry import Entry

_STORAGES = {
    torch.float64: torch.DoubleStorage,
    torch.float32: torch.FloatStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
    torch.int64: torch.LongStorage,
    torch.int32: torch.IntStorage,
    torch.int16: torch.ShortStorage,
    torch.int8: torch.CharStorage,
    torch.uint8: torch.ByteStorage,
    torch.bool: torch.BoolStorage,
}
_WIDENED = (torch.float8_e4m3fn, torch.float8_e5m2)  # have no storage there; each of their numbers is one of fp16
_ALIGNMENT = 64  # of each tensor's bytes, as torch.save has it, so that the file can be mapped
_FOLDER = "archive"


class _Storage:
    """Stands for a tensor's bytes in the pickle; they follow as a file of the archive."""

    def __init__(self, entry: Entry, key: str) -> None:
        self.entry, self.key = entry, key


class _Tensor:
    """Stands for a tensor in the pickle."""

    def __init__(self, storage: _Storage) -> None:
        self.storage = storage

    def __reduce__(self) -> tuple[Any, ...]:
        shape = self.storage.entry.shape
        stride = torch.empty(shape, device="meta").stride()
        return torch._utils._rebuild_tensor_v2, (self.storage, 0, shape, stride, False, collections.OrderedDict())


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, _Storage):
            return None
        count = torch.Size(obj.entry.shape).numel()
        return ("storage", _STORAGES[obj.entry.dtype], obj.key, "cpu", count)


Within = Callable[[dict[str, Any]], dict[str, Any]]  # what tensors, by their names, lie in


def widened(entries: dict[str, Entry]) -> dict[str, Entry]:
    """The tensors as they can be written: those in 8 bits as the same numbers in 16."""
    return {name: replace(e, dtype=torch.float16) if e.dtype in _WIDENED else e for name, e in entries.items()}


def write(
    file: BinaryIO, entries: dict[str, Entry], within: Within = lambda tensors: {"state_dict": tensors}
) -> dict[str, int]:
    """Writes the tensors within what is to be there beside them. Returns each one's CRC-32, which the archive has."""
    program = io.BytesIO()
    tensors = {name: _Tensor(_Storage(entry, str(key))) for key, (name, entry) in enumerate(entries.items())}
    _Pickler(program, protocol=2).dump(within(tensors))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, file, "data.pkl", program.getbuffer())
        _add(archive, file, "byteorder", memoryview(b"little"))
        sums = {
            name: _add(archive, file, f"data/{key}", entry.content())
            for key, (name, entry) in enumerate(entries.items())
        }
        _add(archive, file, "version", memoryview(b"3\n"))
    return sums


def _add(archive: zipfile.ZipFile, file: BinaryIO, name: str, content: memoryview) -> int:
    """One member, its bytes at a multiple of the alignment; the gap is an extra field of its header (PKWARE, 4.5.2).
    Returns its CRC-32."""
    info = zipfile.ZipInfo(f"{_FOLDER}/{name}")
    wide = 20 if content.nbytes >= zipfile.ZIP64_LIMIT else 0  # zipfile puts sizes of over 2 GB into a field of its own
    before = archive.start_dir + 30 + len(info.filename) + wide
    gap = -(before + 4) % _ALIGNMENT
    info.extra = b"FB" + gap.to_bytes(2, "little") + b"Z" * gap
    with archive.open(info, "w", force_zip64=bool(wide)) as member:
        member.write(content)
    return info.CRC
