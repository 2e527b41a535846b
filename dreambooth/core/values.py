"""A setting's value as a person, a file or the command line gives it, and how it is written for people."""

from __future__ import annotations

import math
from typing import Any


def plain(value: Any) -> str:
    """As people read it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def typed(raw: Any, kind: type) -> Any:
    """The value of a kind (bool, int, float or str) that is meant. Raises ValueError where it is none."""
    if kind is bool:
        words = {
            "true": True,
            "on": True,
            "yes": True,
            "1": True,
            "false": False,
            "off": False,
            "no": False,
            "0": False,
        }
        if isinstance(raw, bool):
            return raw
        if str(raw).lower() in words:
            return words[str(raw).lower()]
        raise ValueError(f"{raw!r} is not on or off.")
    if kind is str:
        return _text(raw)
    return _number(raw, kind)


def _text(raw: Any) -> str:
    """Text that can be written into a file and read again."""
    if not isinstance(raw, str):
        raise ValueError(f"{raw!r} is not text.")
    try:
        raw.encode()
    except UnicodeEncodeError:
        raise ValueError("it holds what is no character; write it anew.") from None
    if "\x00" in raw:
        raise ValueError("it holds a character without a meaning (NUL); write it anew.")
    return raw


def _number(raw: Any, kind: type) -> Any:
    wanted = "a whole number" if kind is int else "a number"
    if isinstance(raw, bool) or not isinstance(raw, (int, float, str)):
        raise ValueError(f"{raw!r} is not {wanted}.")
    if raw == "":
        raise ValueError(f"it is empty; give {wanted}.")
    try:
        value = int(raw) if kind is int and isinstance(raw, str) else float(raw)
        if not math.isfinite(value) or (kind is int and value != int(value)):
            raise ValueError
    except (ValueError, OverflowError):
        raise ValueError(f"{str(raw)[:40]!r} is not {wanted}.") from None
    return kind(value)
