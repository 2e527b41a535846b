"""Finding a setting by its words, and which settings are not at their defaults."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from dreambooth.core.schema import leaves
from dreambooth.core.settings import Settings
from dreambooth.ui.page.controls import elem_id
from dreambooth.ui.page.fragments import said

OWN = {leaf.key: leaf for leaf in leaves(Settings) if not leaf.key.startswith("concepts.")}


def search_field(titles: Mapping[str, str]) -> str:
    """A field to search in, with what the browser searches: {section: {control: its words}}."""
    words: dict[str, dict[str, str]] = {}
    for key, leaf in OWN.items():
        section = key.split(".")[0]
        text = f"{titles.get(section, section)} {leaf.spec.label} {leaf.spec.help} {key}".lower()
        words.setdefault(f"db_section_{section}", {})[elem_id(key)] = text
    return (
        '<input type="search" class="db-search" placeholder="Find a setting" aria-label="Find a setting" '
        f'data-db-words="{escape(json.dumps(words, ensure_ascii=False))}">'
    )


def changed_view(flat: Mapping[str, Any]) -> str:
    """Which settings differ from their defaults, each marked at its control by the browser, where a press resets it."""
    changed = {key: leaf for key, leaf in OWN.items() if flat[key] != leaf.default}
    marks = {elem_id(key): [key, said(leaf.default)] for key, leaf in changed.items()}
    count = f"{len(changed)} changed from the defaults" if changed else "All at their defaults"
    return f'<p class="db-quiet" data-db-changed="{escape(json.dumps(marks, ensure_ascii=False))}">{count}</p>'
