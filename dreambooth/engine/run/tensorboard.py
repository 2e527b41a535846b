"""TensorBoard event files, written without the package.

The format is a framing (TFRecord) around a message (tensorflow/core/util/event.proto). The package that writes it has
nine dependencies.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_POLYNOMIAL = 0x82F63B78  # CRC-32C, reflected


class EventFile:
    """Appends values to a new event file in a folder, in whole records, so that a reader never sees a part of one."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"events.out.tfevents.{time.time_ns() // 1000}.dreambooth"
        self._append(_text(3, "brain.Event:2"))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a point to each curve."""
        summaries = b"".join(_field(1, _text(1, name) + _float32(2, value)) for name, value in values.items())
        self._append(_varint_field(2, step) + _field(5, summaries))

    def _append(self, event: bytes) -> None:
        data = _float64(1, time.time()) + event
        length = struct.pack("<Q", len(data))
        record = length + struct.pack("<I", _masked(crc32c(length))) + data + struct.pack("<I", _masked(crc32c(data)))
        with open(self.path, "ab") as file:
            file.write(record)


def curves(fields: Mapping[str, Any]) -> dict[str, float]:
    """The values to draw of a report of the training loop, by the name of their curve."""
    drawn = {f"loss/{name.removesuffix('_loss')}": fields[name] for name in ("loss", "subject_loss", "prior_loss")}
    drawn |= {f"learning rate/{part}": rate for part, rate in fields["rates"].items()}
    drawn |= {f"gradient norm/{part}": norm for part, norm in fields["gradient_norms"].items()}
    drawn["steps per second"] = fields["steps_per_second"]
    return drawn


def crc32c(data: bytes) -> int:
    """The Castagnoli checksum (RFC 3720, appendix B.4)."""
    value = 0xFFFFFFFF
    for byte in data:
        value = _TABLE[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


def _table() -> Iterable[int]:
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
        yield value


_TABLE = tuple(_table())


def _masked(crc: int) -> int:
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _varint_field(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _float64(number: int, value: float) -> bytes:
    return _varint(number << 3 | 1) + struct.pack("<d", value)


def _float32(number: int, value: float) -> bytes:
    return _varint(number << 3 | 5) + struct.pack("<f", value)


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _text(number: int, text: str) -> bytes:
    return _field(number, text.encode())
