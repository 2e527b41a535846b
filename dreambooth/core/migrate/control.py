"""What became of another program's settings that are elsewhere here, mean something else, or are not here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Control(NamedTuple):
    """What it is called there, what differs or why it is not here, and where to look instead."""

    label: str
    why: str
    keys: tuple[str, ...] = ()  # in its files
    ours: tuple[str, ...] = ()  # settings
    place: str = ""  # on the page or the command line, where it is no setting

    @property
    def here(self) -> str:
        """Where to look instead; empty where it is not here."""
        return ", ".join(filter(None, (*self.ours, self.place)))

    @property
    def reason(self) -> str:
        """Why it is left out of an import, behind where to look instead."""
        return f"{self.here}: {self.why}" if self.here else self.why


NOT_HERE = "not here"  # how a reason begins why there is nothing of the kind
UNKNOWN = "there is no such setting here"
READ_FROM_FILE = 'Model tab, "How to read it"'


def of_keys(keys: str, why: str, *ours: str, place: str = "") -> Control:
    """A row for settings that are named by their keys alone, with commas between."""
    return Control(keys, why, tuple(keys.split(", ")), ours, place)


def by_key(sections: Mapping[str, Iterable[Control]]) -> dict[str, Control]:
    return {key: control for some in sections.values() for control in some for key in control.keys}
