"""Which names a file or folder can have on every system."""

from __future__ import annotations

import re

_NEVER = re.compile(r"[<>:\"/\\|?*\x00-\x1f\ud800-\udfff]")
_WINDOWS_DEVICES = {"con", "prn", "aux", "nul", *(f"com{i}" for i in range(10)), *(f"lpt{i}" for i in range(10))}


def is_sound(name: str) -> bool:
    """Whether it is a single name that no system takes for anything else, such as a path or a device."""
    if not name or name.strip(" .") != name or _NEVER.search(name):
        return False
    return not is_device(name)


def is_device(name: str) -> bool:
    """Whether Windows takes it for a device, whatever its ending."""
    return name.split(".")[0].strip().lower() in _WINDOWS_DEVICES
