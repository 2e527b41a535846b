"""Reading another program's settings, so that the report has a line of each: what is taken says so, and at the end the
rest says why it is not."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from dreambooth.core.errors import UserError
from dreambooth.core.migrate.control import UNKNOWN, Control
from dreambooth.core.migrate.disk import Disk
from dreambooth.core.migrate.report import Migration, number
from dreambooth.core.schema import general, leaves
from dreambooth.core.settings import Settings, parse

_NOTHING: tuple[Any, ...] = (None, False, 0, "", [], {}, "None", "none")
_MOST_CONFLICTS = 10
_TEXTS = {leaf.key for leaf in leaves(Settings) if leaf.kind is str}  # settings of ours that take no number


@dataclass
class Reading:
    """Settings by the names that the program's table has, and what a file calls them where that differs."""

    theirs: Mapping[str, Any]
    table: Mapping[str, Control]
    into: Migration
    names: Mapping[str, str] = field(default_factory=dict)

    def is_given(self, key: str) -> bool:
        """Whether it says anything: not empty, off or 0."""
        return not nothing(self.theirs.get(key))

    def number(self, key: str, otherwise: float = 0.0) -> float:
        return number(self.theirs.get(key), otherwise)

    def take(self, key: str, ours: str, value: Any = None, why: str | None = None) -> None:
        """Takes one, as it is or as `value`; without a reason of its own it has the table's, if any."""
        known = self.theirs.get(key) if value is None else value
        if why is None:
            why = self.table[key].why if key in self.table else ""
        self.into.take(self.names.get(key, key), ours, fitting(ours, known), why)

    def take_file(self, disk: Disk, key: str, ours: str) -> None:
        """Takes the path of a file, if it names one that is there."""
        name = str(self.theirs.get(key) or "").strip()
        if name and (problem := disk.problem(name)):
            self.leave(key, f"{problem}: {name}")
        elif name:
            self.take(key, ours, name)

    def leave(self, key: str, why: str | None = None) -> None:
        reason = self.table[key].reason if key in self.table else UNKNOWN
        self.into.leave(self.names.get(key, key), self.theirs.get(key), reason if why is None else why)

    def same(self, table: Mapping[str, str]) -> None:
        """Those that mean the same under another name, unless they are empty."""
        for key, ours in table.items():
            if key in self.theirs and self.theirs[key] not in (None, ""):
                self.take(key, ours)

    def rest(self, own: Set[str], secret: Set[str], off: Set[str]) -> None:
        """Reports what has no line yet: `own` are the program's notes for itself, of `secret` ones the value is not
        shown, and `off` ones have a meaning only with something that is off. Then leaves out again what was taken and
        does not go together here."""
        reported = self.into.reported_keys()
        quiet: list[str] = []
        for key in sorted(key for key in self.theirs.keys() - own if self.names.get(key, key) not in reported):
            if key in off or not self.is_given(key):
                quiet.append(self.names.get(key, key))
            elif key in secret:
                self.into.leave(self.names.get(key, key), None, self.table[key].reason)
            else:
                self.leave(key)
        if quiet:
            self.into.leave(", ".join(quiet), None, "empty or off, or only for something that is off")
        if notes := sorted(self.names.get(key, key) for key in self.theirs.keys() & own):
            self.into.leave(", ".join(notes), None, "that program's own notes, and no settings")
        _settle(self.into)


def _settle(into: Migration) -> None:
    """Leaves out what does not go together here, with the sentence that a run would say of it."""
    for _ in range(_MOST_CONFLICTS):
        try:
            parse(into.settings)
            return
        except UserError as error:
            found = [(problem.partition(":")[0], problem) for problem in error.problems]
        odd = [(key, problem) for key, problem in found if key in into.settings]
        for key, problem in dict(odd).items():
            value = into.settings.pop(key)
            theirs = [line.theirs for line in into.lines if line.ours == key]
            into.lines = [line for line in into.lines if line.ours != key]
            for one in theirs:
                into.leave(one, value, problem)
        if not odd:
            return


def nothing(value: Any) -> bool:
    """Whether a setting there is empty, off or 0."""
    value = exact(value)
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in _NOTHING)


def fitting(ours: str, value: Any) -> Any:
    """A value for a setting of ours: as `exact` has it, but a name such as 007 or 2024_06_01 stays the text it is."""
    return value if isinstance(value, str) and general(ours) in _TEXTS else exact(value)


def exact(value: Any) -> Any:
    """A number that is written as text, or a whole one with a point, as what it is."""
    if isinstance(value, str):
        try:
            found = float(value)
        except ValueError:
            return value
        return value if found != found else exact(found)
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else value
