"""What Linux tells of the machine, and of a process's share of it: this start, and the memory. Other systems tell none
of it."""

from __future__ import annotations

import contextlib
import platform
import sys
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_COUNTERS = Path("/proc/vmstat")
_SCORE = Path("/proc/self/oom_score_adj")
_GROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_FIRST_TO_GO = 500  # of 1000; as if it held half of the memory beside what it does
# Of version 2 of Linux's control groups, and of version 1: the files of limit and use, and of the use what can be given
# back at once.
_NEWER = ("memory.max", "memory.current", ("active_file", "inactive_file"))
_OLDER = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file"))


def boot() -> str:
    """A name of this start of the machine; empty where the system gives none (it does on Linux)."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def is_in_windows() -> bool:
    """Whether this is a Linux that Windows runs (WSL), whose cards Windows' drivers serve."""
    return sys.platform == "linux" and "microsoft" in platform.release().lower()


def memory_kills() -> int:
    """How many processes the system has ended since its start because memory ran out; 0 where it does not say."""
    try:
        words = _COUNTERS.read_text(encoding="ascii").split()
        return int(words[words.index("oom_kill") + 1])
    except (OSError, ValueError, IndexError, UnicodeDecodeError):
        return 0


def go_first(score: Path = _SCORE) -> None:
    """Has the system end this process, and what it starts, before others where memory runs out: whoever started it may
    be a WebUI, whose own model lies in memory meanwhile."""
    with contextlib.suppress(OSError, ValueError):  # where that is not allowed it is as it was
        if int(score.read_text(encoding="ascii")) < _FIRST_TO_GO:
            score.write_text(str(_FIRST_TO_GO), encoding="ascii")


def room_bytes(groups: Path = _GROUPS, own: Path = _OWN_GROUPS) -> int | None:
    """How much more memory a container's limit leaves to this process; None without a limit."""
    rooms = []
    with contextlib.suppress(OSError, ValueError):
        for line in own.read_text(encoding="utf-8").splitlines():
            _, kinds, path = line.split(":", 2)
            if not kinds or "memory" in kinds.split(","):
                root, files = (groups / "memory", _OLDER) if kinds else (groups, _NEWER)
                folder = root / path.lstrip("/")
                above = [one for one in folder.parents if one.is_relative_to(root)]
                rooms += [_room(one, *files) for one in (folder, *above)]
    return min((room for room in rooms if room is not None), default=None)


def _room(group: Path, limit: str, use: str, given_back: tuple[str, ...]) -> int | None:
    try:
        most, used = int((group / limit).read_text()), int((group / use).read_text())
        figures = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # there is no such group here, as seen from within a container, or no limit ("max")
        return None
    return max(0, most - used + sum(int(figures.get(name, 0)) for name in given_back))
