"""A model file's table of contents: which tensors it holds and where each lies, without loading one.

The same table describes a .safetensors file, a .ckpt file, a Diffusers folder of several files, or a mixture
(a checkpoint with another file's VAE), so that whoever reads weights need not know where they come from.

A .safetensors file starts with the length of its header (8 bytes, little-endian) and the header,
a JSON object of {tensor name: {dtype, shape, data_offsets}} and `__metadata__`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

from dreambooth.core.errors import UserError

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_SIDES = 64  # of a tensor, as of NumPy's; a model's have four
_MOST_DIGITS = 20
BYTES_PER_VALUE = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
SUFFIXES = (".safetensors", *PICKLES)
CHECKPOINTS, EMBEDDINGS = (".safetensors", ".ckpt"), (".safetensors", ".pt")  # as which one is written


@dataclass(frozen=True)
class Tensor:
    """One tensor: its dtype as .safetensors spells it, its shape, and its bytes `start` to `end` of `file`.

    `stride` counts values along each side; None is the usual order, row after row.
    """

    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int
    stride: tuple[int, ...] | None = None

    @property
    def values(self) -> int:
        return prod(self.shape)

    def rows(self, part: int, parts: int) -> Tensor:
        """The rows of one of several equal parts. Raises ValueError if they are not equal."""
        if not self.shape or self.shape[0] % parts:
            raise ValueError(self.shape)
        shape = (self.shape[0] // parts, *self.shape[1:])
        if self.stride is not None:
            before = part * shape[0] * self.stride[0] * BYTES_PER_VALUE[self.dtype]
            return replace(self, shape=shape, start=self.start + before)
        size = (self.end - self.start) // parts
        return replace(self, shape=shape, start=self.start + part * size, end=self.start + (part + 1) * size)

    def first_rows(self, count: int) -> Tensor:
        """The first rows alone, or all if there are no more."""
        if not self.shape or self.shape[0] <= count:
            return self
        shape = (count, *self.shape[1:])
        if self.stride is not None:
            return replace(self, shape=shape)
        return replace(self, shape=shape, end=self.start + (self.end - self.start) // self.shape[0] * count)

    def turned(self) -> Tensor:
        """A matrix with its rows as columns."""
        down, across = self.stride or (self.shape[1], 1)
        return replace(self, shape=(self.shape[1], self.shape[0]), stride=(across, down))

    def flattened(self) -> Tensor:
        """A 1x1 convolution as the matrix that it is."""
        return replace(self, shape=self.shape[:2], stride=self.stride[:2] if self.stride else None)


@dataclass(frozen=True, eq=False)  # each is itself, so that what is worked out of one can be remembered
class Header:
    """What a model file or folder holds. `configs` are a Diffusers folder's, by part."""

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    configs: dict[str, dict[str, object]] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """The size of all files that the tensors lie in."""
        return sum(file.stat().st_size for file in {t.file for t in self.tensors.values()})


def read_safetensors(path: Path) -> Header:
    """The header of a .safetensors file. Raises UserError if the file is none, or is cut short."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 10 or not 2 <= length <= MAX_HEADER_BYTES:
                raise UserError(f"{path}: this is not a .safetensors file.")
            if length > size - 8:
                raise UserError(f"{path}: the file is cut short; download or copy it again.")
            text = file.read(length)
    except OSError as error:
        raise UserError(f"{path}: the file cannot be read ({error.strerror}).") from None
    header = _parse(path, text, data_start=8 + length)
    expected = max((t.end for t in header.tensors.values()), default=0)
    if size < expected:
        raise UserError(f"{path}: the file is cut short ({size:,} of {expected:,} bytes); download or copy it again.")
    return header


def _number(digits: str) -> int:
    """Longer ones take time that goes with the square of their length."""
    if len(digits) > _MOST_DIGITS:
        raise ValueError
    return int(digits)


def _numbers(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > MAX_SIDES or any(type(one) is not int for one in value):
        raise ValueError
    return tuple(value)


def _parse(path: Path, text: bytes, data_start: int) -> Header:
    tensors: dict[str, Tensor] = {}
    try:
        raw = json.loads(text, parse_int=_number)
        metadata = {str(k): str(v) for k, v in raw.pop("__metadata__", {}).items()}
        for name, entry in raw.items():
            start, end = _numbers(entry["data_offsets"])
            shape = _numbers(entry["shape"])
            dtype = str(entry["dtype"])
            if dtype not in BYTES_PER_VALUE:
                raise UserError(f"{path}: it holds weights in {dtype[:20]!r}, which are not read here; get it in fp16.")
            tensor = Tensor(dtype, shape, path, data_start + start, data_start + end)
            wanted = prod(tensor.shape) * BYTES_PER_VALUE[tensor.dtype]
            if start < 0 or end - start != wanted or min(tensor.shape, default=0) < 0:
                raise ValueError(name)
            tensors[name] = tensor
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        raise UserError(
            f"{path}: the header of this .safetensors file is damaged; download or copy it again."
        ) from None
    return Header(path, tensors, metadata)
