"""Which names a file or folder can have on every system, and those of pictures that are drawn."""

from __future__ import annotations

import re
from pathlib import Path

LONGEST = 255  # bytes of a name; what every file system here takes
_DRAWN = re.compile(r"(\d{5,})-")
_NEVER = re.compile(r"[<>:\"/\\|?*\x00-\x1f\ud800-\udfff]")
_WINDOWS_DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$"}
_WINDOWS_DEVICES |= {f"{port}{number}" for port in ("com", "lpt") for number in "0123456789\xb9\xb2\xb3"}


def is_sound(name: str) -> bool:
    """Whether it is a single name that no system takes for anything else, such as a path or a device."""
    if not name or name.strip(" .") != name or _NEVER.search(name):
        return False
    return not is_device(name)


def cut(name: str, after: str = "") -> str:
    """The name with what comes after it, as much of it as one may have."""
    kept = name.encode(errors="surrogatepass")[: LONGEST - len(after.encode())]
    return kept.decode(errors="ignore").rstrip(" .") + after  # Windows takes no name that ends so


def of_drawn(folder: Path, seed: int) -> Path:
    """The file of the next picture that is drawn into a folder. It counts on from the highest number there, so that
    none is written over where some were removed."""
    numbers = [int(found[1]) for file in folder.glob("*.png") if (found := _DRAWN.match(file.name))]
    return folder / f"{max(numbers, default=-1) + 1:05}-{seed}.png"


def is_device(name: str) -> bool:
    """Whether Windows takes it for a device, whatever its ending."""
    return name.split(".")[0].strip().lower() in _WINDOWS_DEVICES
