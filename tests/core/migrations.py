"""What tests of imports look at: the settings that came of one, and what is said of each of theirs."""

from __future__ import annotations

from typing import Any

from dreambooth.core import schema, settings
from dreambooth.core.migrate.report import Migration, Seen


def look(folder: str) -> Seen:
    """Ten pictures everywhere; seven of Anna's have captions."""
    return Seen(10, {".txt": 7} if folder == "/d/anna" else {})


def flat(migration: Migration) -> dict[str, Any]:
    """The migrated settings, which our schema takes as they are."""
    return schema.to_flat(settings.parse(migration.settings))


def left(migration: Migration) -> set[str]:
    return {line.theirs for line in migration.lines if line.fate == "left out"}


def fates(migration: Migration) -> dict[str, tuple[str, str]]:
    """What became of each of their settings, and its reason."""
    return {line.theirs: (line.fate, line.why) for line in migration.lines}
