"""What Performance has set, and why."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from dreambooth.core.memory.planner import Plan
from dreambooth.ui.page.fragments import label_of, said


def plan_view(made: Plan, before: Mapping[str, Any]) -> str:
    """The changes as labels with their old and new values, then the planner's reasons."""
    rows = "".join(
        f"<li><b>{escape(label_of(key))}</b> {escape(said(before[key]))} → {escape(said(value))}</li>"
        for key, value in made.changes.items()
    )
    changed = f"<ul>{rows}</ul>" if rows else "<p>Nothing had to be changed.</p>"
    kind = "db-good" if made.fits else "db-problems"
    first, *reasons = made.reasons
    why = "".join(f"<p>{escape(reason)}</p>" for reason in reasons)
    return f'<div class="db-plan-made" data-db-problems="[]"><p class="{kind}">{escape(first)}</p>{changed}{why}</div>'
