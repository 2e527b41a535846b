"""One step back: a model's settings as they were before many of them were changed at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic
from dreambooth.core.files.json_file import read_object
from dreambooth.core.project import Project
from dreambooth.service import models, settings_lock


def change(opened: Project, flat: Mapping[str, Any]) -> dict[str, Any]:
    """Makes these the model's own settings, and keeps those that it had. Raises UserError, and changes nothing then."""
    with settings_lock.changing(opened):
        before = opened.settings()
        after = models.write_settings(opened, flat)
        # Private as the settings themselves are: a webhook's address lets everybody write to its channel.
        atomic.write_text(_kept(opened), json.dumps({"before": before, "after": after}, indent=1), private=True)
        return after


def undo(opened: Project) -> None:
    """Puts back what the last change has kept. Raises UserError where there is nothing, or where the settings were
    changed since, which would be lost."""
    with settings_lock.changing(opened):
        if not _kept(opened).exists():
            raise UserError("There is nothing to undo.")
        kept = read_object(_kept(opened))
        if opened.settings() != kept.get("after"):
            raise UserError(
                f"The settings were changed since, so nothing was undone; {_kept(opened)} has those from before."
            )
        models.write_settings(opened, dict(kept.get("before") or {}))
        atomic.remove(_kept(opened))


def _kept(opened: Project) -> Path:
    return opened.folder / "settings.before.json"
