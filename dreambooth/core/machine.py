"""What tells, afterwards, why a process is gone: this start of the machine, and how often memory ran out on it."""

from __future__ import annotations

from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_COUNTERS = Path("/proc/vmstat")


def boot() -> str:
    """A name of this start of the machine; empty where the system gives none (it does on Linux)."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def memory_kills() -> int:
    """How many processes the system has ended since its start because memory ran out; 0 where it does not say."""
    try:
        words = _COUNTERS.read_text(encoding="ascii").split()
        return int(words[words.index("oom_kill") + 1])
    except (OSError, ValueError, IndexError, UnicodeDecodeError):
        return 0
