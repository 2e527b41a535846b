"""A job as a person sees it in a terminal: one line that moves while something is under way."""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
import time
from typing import Any, TextIO

from dreambooth.core.formatting import duration, memory, size

_WIDTH, _SHORTEST = 24, 6  # of a bar
_DRAWN, _TYPED = ("▓", "░"), ("#", ".")  # Windows writes into a pipe or file what its code page has


class Terminal:
    """Shows progress on standard error, so that standard output stays for results."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr or io.StringIO()  # there is none where it was closed
        self.moving = self.stream.isatty()
        self.full, self.empty = _DRAWN if _can_show(self.stream, "".join(_DRAWN)) else _TYPED
        self.drawn = 0
        self.stage = ""
        self.printed_at = 0.0

    def say(self, text: str) -> None:
        """A line that stays."""
        self._clear()
        self._write(f"{text}\n")

    def show(self, text: str) -> None:
        """A line that the next one replaces; where there is no terminal, one now and then."""
        if self.moving:
            self._clear()
            text = text[: self._columns() - 1]  # a line that is broken cannot be taken back
            self._write(text)
            self.drawn = len(text)
        elif time.monotonic() - self.printed_at > 5:
            self.printed_at = time.monotonic()
            self._write(f"{text}\n")

    def event(self, event: dict[str, Any]) -> None:
        """One event of a job."""
        what = event["event"]
        if what == "stage":
            self._show_stage(event["name"], event["done"], event["total"], event.get("unit", ""))
        elif what == "step":
            self.stage = "training"
            self.show(self._with_bar(event["step"] / event["steps"], _step_line(event)))
        elif what == "resumed":
            self.say(f"Going on from step {event['step']:,}")
        elif what == "saved":
            self.say(f"Saved {event['path']} ({size(event['bytes'])})")
        elif what == "removed":
            self.say(f"Removed {event['path']}")
        elif what == "warning":
            self.say(f"Note: {event['text']}")
        elif what == "paused":
            self.say("Paused.")
        elif what == "stopped":
            self.say(
                "Stopped without a result; what was written before stays." if event.get("discarded") else "Stopped."
            )

    def end(self) -> None:
        self._clear()

    def _show_stage(self, name: str, done: int, total: int, unit: str) -> None:
        if name != self.stage:
            self.stage, self.printed_at = name, 0.0
        count = f" {done} of {total}" if total > 1 else ""
        if unit == "bytes":
            count = f" {size(done)} of {size(total)}"
        self.show(self._with_bar(done / total, name + count) if total > 1 else name + count)

    def _with_bar(self, share: float, words: str) -> str:
        """Words behind a bar, which is as long as there is room for; too short a one is left out."""
        width = min(_WIDTH, self._columns() - len(words) - 2) if self.moving else _WIDTH
        if width < _SHORTEST:
            return words
        full = round(max(0.0, min(1.0, share)) * width)
        return f"{self.full * full + self.empty * (width - full)} {words}"

    def _columns(self) -> int:
        return shutil.get_terminal_size().columns

    def _clear(self) -> None:
        if self.moving and self.drawn:
            self._write("\r" + " " * self.drawn + "\r")
        self.drawn = 0

    def _write(self, text: str) -> None:
        """Who reads may be gone, as `| tee` is after Ctrl-C; what is under way has to be ended all the same."""
        with contextlib.suppress(OSError):
            self.stream.write(text)
            self.stream.flush()


def _can_show(stream: TextIO, text: str) -> bool:
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def table(rows: list[list[str]]) -> str:
    """Rows as aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def _step_line(event: dict[str, Any]) -> str:
    taken = f" · {memory(event['memory_bytes'])}" if event.get("memory_bytes") else ""
    return (
        f"{event['step'] / event['steps']:4.0%} · step {event['step']:,} of "
        f"{event['steps']:,} · {event['steps_per_second']:.2f} it/s · loss {event['loss']:.4f}{taken} · "
        f"{duration(event['seconds_left'])} left"
    )
