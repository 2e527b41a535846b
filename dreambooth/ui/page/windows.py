"""Two windows on one model: each writes only what was changed in it, and says what is newer in the model's file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from dreambooth.core.errors import UserError
from dreambooth.core.schema import general, leaves
from dreambooth.core.settings import Settings
from dreambooth.ui.page.fragments import label_of, value_text

Values = dict[str, Any]
Newer = dict[str, tuple[Any, Any]]  # what this window shows of a setting, and what it is now

_MOST_SHOWN = 8
_LONGEST = 40  # letters of a value
_SECRETS = {leaf.key for leaf in leaves(Settings) if leaf.spec.secret}


def note(shown: Mapping[str, Any], count: int) -> str:
    """What a window last had of the model's settings, kept in the browser: values as its controls have them, and how
    many concepts there were."""
    return json.dumps({"settings": dict(shown), "concepts": count}, ensure_ascii=False)


def noted(text: str) -> tuple[Values, int]:
    """What `note` says; nothing where it says nothing."""
    content = json.loads(text) if text else {}
    return content.get("settings", {}), content.get("concepts", 0)


def concepts(flat: Mapping[str, Any]) -> int:
    """How many concepts settings have."""
    return len({key.split(".")[1] for key in flat if key.startswith("concepts.")})


def check_concepts(text: str, changed: Mapping[str, Any], flat: Mapping[str, Any], newer: Newer) -> None:
    """Raises UserError for a change to a concept where another window has removed one: it may be another's by now. One
    that is in all just as this window last had it is the same; `newer` is what is not."""
    before, count = noted(text)
    ours = [key for key in before if key.startswith("concepts.")]
    if concepts(flat) >= count or not any(key.startswith("concepts.") for key in changed):
        return
    if any(key not in flat or key in newer for key in ours):
        raise UserError("A concept was removed in another window, so nothing was saved here; ⟳ shows those there are.")


def check_row(row: int, shown: Mapping[str, Any], newer: Newer) -> None:
    """Raises UserError for what is to be done to a concept that is not as this window shows it: where another window
    has removed one, it may be the next one. What `newer` has of it and is `shown` was changed here just now."""
    if any(key.startswith(f"concepts.{row}.") and shown[key] != now for key, (_, now) in newer.items()):
        raise UserError(
            "This concept was changed in another window, or another one stands in its place, so nothing was done; ⟳ "
            "shows those there are."
        )


def newer_view(newer: Newer, then: str = "⟳ shows it; what you change here is saved beside it.") -> str:
    """What was changed in another window and is not shown in this one; empty where nothing was."""
    if not newer:
        return ""
    rows = [_row(key, *values) for key, values in newer.items()]
    more = f", and {len(rows) - _MOST_SHOWN} more" if len(rows) > _MOST_SHOWN else ""
    return f'<p class="db-note">Changed in another window: {", ".join(rows[:_MOST_SHOWN])}{more}. {then}</p>'


def _row(key: str, before: Any, now: Any) -> str:
    label = f"<b>{escape(label_of(key))}</b>"
    return label if general(key) in _SECRETS else f"{label} {_short(before)} → {_short(now)}"


def _short(value: Any) -> str:
    text = value_text(value)
    return escape(text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…")
