"""What Performance or a preset has set, and why."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from dreambooth.core.memory.planner import Plan
from dreambooth.core.presets import Preset
from dreambooth.core.schema import general
from dreambooth.ui.page.fragments import label_of, labelled, value_text


def plan_view(plan: Plan, before: Mapping[str, Any]) -> str:
    """The changes as labels with their old and new values, then the planner's reasons."""
    rows = "".join(f"<li>{_change(key, before[key], value)}</li>" for key, value in plan.changes.items())
    changed = f"<ul>{rows}</ul>" if rows else "<p>Nothing had to be changed.</p>"
    kind = "db-good" if plan.fits else "db-problems"
    first, *reasons = (escape(labelled(reason)) for reason in plan.reasons)
    why = "".join(f"<p>{reason}</p>" for reason in reasons)
    return f'<div class="db-plan-made" data-db-problems="[]"><p class="{kind}">{first}</p>{changed}{why}</div>'


def preset_view(preset: Preset, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The settings that a preset has changed, each with its reason; `before` has these alone, as they were."""
    count = len(before)
    head = f"{preset.label}: {count} setting{'' if count == 1 else 's'} changed{':' if count else '.'}"
    rows = "".join(
        f"<li>{_change(key, value, after[key])} · <span>{escape(preset.settings[general(key)].why)}</span></li>"
        for key, value in before.items()
    )
    return f'<div class="db-plan-made" data-db-problems="[]"><p class="db-good">{head}</p><ul>{rows}</ul></div>'


def _change(key: str, before: Any, now: Any) -> str:
    return f"<b>{escape(label_of(key))}</b> {escape(value_text(before))} → {escape(value_text(now))}"
