"""What became of each foreign setting: taken as it is, changed with a reason, or left out with a reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Any, Literal

from dreambooth.core.errors import UserError
from dreambooth.core.schema import from_flat
from dreambooth.core.settings import Settings

Fate = Literal["taken", "changed", "left out"]


@dataclass(frozen=True)
class Line:
    """The fate of one foreign setting; `ours` is empty where it was left out."""

    fate: Fate
    theirs: str
    ours: str
    value: Any
    why: str


@dataclass(frozen=True)
class Seen:
    """What lies in a folder: how many pictures, and how many of them have a caption, by the caption file's suffix."""

    pictures: int = 0
    captions: Mapping[str, int] = field(default_factory=dict)


Look = Callable[[str], Seen]


@dataclass
class Migration:
    """Our settings as dotted keys, and the report. What our schema refuses is left out with its reason."""

    settings: dict[str, Any] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)

    def take(self, theirs: str, ours: str, value: Any, why: str = "") -> None:
        """Takes a foreign setting; with a reason it counts as changed. What was taken of it before is forgotten."""
        general = ".".join("0" if part.isdigit() else part for part in ours.split("."))
        try:
            from_flat(Settings, {general: value})
        except UserError as error:
            self.leave(theirs, value, error.problems[0].removeprefix(f"{general}: "))
            return
        self.settings[ours] = value
        self.lines = [line for line in self.lines if (line.theirs, line.ours) != (theirs, ours)]
        self.lines.append(Line("changed" if why else "taken", theirs, ours, value, why))

    def leave(self, theirs: str, value: Any, why: str) -> None:
        self.lines.append(Line("left out", theirs, "", value, why))

    def reported_keys(self) -> set[str]:
        """The foreign settings that the report has a line of."""
        return {one for line in self.lines for one in line.theirs.split(", ")}


def number(value: Any, otherwise: float = 0.0) -> float:
    """A foreign value as a number; `otherwise` for what is none."""
    try:
        found = float(value)
        return found if isfinite(found) else otherwise
    except (TypeError, ValueError, OverflowError):
        return otherwise


def side(theirs: str, resolution: Any, into: Migration) -> None:
    """Takes a resolution: a number, [width, height] or "width,height"; ours is a square's side, a multiple of 64."""
    parts = resolution.split(",") if isinstance(resolution, str) else resolution
    sides = [number(part) for part in (parts if isinstance(parts, (list, tuple)) else [parts])]
    area = sides[0] * sides[-1] if sides else 0.0
    if not 0 < area < inf:
        into.leave(theirs, resolution, "it is no size in pixels")
        return
    exact = area**0.5
    rounded = max(64, round(exact / 64) * 64)
    why = "" if rounded == exact and sides[0] == sides[-1] else "a square of about that area, a multiple of 64"
    into.take(theirs, "general.resolution", rounded, why)
