"""What an importer asks of the disk, so that it needs none itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dreambooth.core.migrate.report import Look, Seen

NOT_THERE = "there is no such file or folder here"


def _no_folders(folder: str) -> Sequence[tuple[str, str]]:
    return []


def _nothing(file: str) -> None:
    return None


@dataclass(frozen=True)
class Disk:
    """What lies where a file of settings says; the default is an empty disk."""

    look: Look = lambda folder: Seen()
    problem: Callable[[str], str] = lambda path: NOT_THERE  # of a file or folder; empty where it is there
    repeated: Callable[[str], Sequence[tuple[str, str]]] = (
        _no_folders  # folders in one, such as `10_sks dog`: name, path
    )
    text: Callable[[str], str | None] = _nothing  # of a small .txt file
    parsed: Callable[[str], Any] = _nothing  # of a small .json file
