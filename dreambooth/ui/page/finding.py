"""Finding a setting by its words, and which settings are not at their defaults."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from dreambooth.core.migrate.control import NOT_HERE
from dreambooth.core.migrate.other_names import OF_CONTROLS, other_names
from dreambooth.core.migrate.predecessor import controls
from dreambooth.core.schema import leaves
from dreambooth.core.settings import Settings
from dreambooth.ui.page.controls import elem_id
from dreambooth.ui.page.fragments import labelled, value_text

_ALL = {leaf.key: leaf for leaf in leaves(Settings)}
OWN = {key: leaf for key, leaf in _ALL.items() if not key.startswith("concepts.")}
_OTHER_NAMES = other_names()


def search_field(titles: Mapping[str, str]) -> str:
    """A field to search in, with what the browser searches: {section: {control: its words}}, and [words, sentence] for
    what is no setting of this tab."""
    words: dict[str, dict[str, str]] = {}
    for key in OWN:
        section = key.split(".")[0]
        text = f"{titles.get(section, section)} {_words(key)}".lower()
        words.setdefault(f"db_section_{section}", {})[elem_id(key)] = text
    return (
        '<input type="search" class="db-search" placeholder="Find a setting" aria-label="Find a setting" '
        f'data-db-words="{_json(words)}" data-db-elsewhere="{_json(elsewhere())}">'
        '<div class="db-known-elsewhere" role="status" hidden></div>'
    )


def elsewhere() -> list[tuple[str, str]]:
    """What people look for and is no setting of this tab: its words, and a sentence that says where it is or why it is
    not here."""
    found = []
    for key, leaf in _ALL.items():
        if key not in OWN:
            found.append((_words(key).lower(), f"{leaf.spec.label}: on the Concepts tab."))
    for control in controls.every():
        if not control.ours or control.why.startswith(NOT_HERE):
            words = " ".join([control.label, *control.keys, OF_CONTROLS.get(control.label, "")])
            found.append((words.lower(), f"{control.label}: {control.reason}."))
    return [(words, labelled(sentence)) for words, sentence in found]


def _words(key: str) -> str:
    """Everything by which a setting may be looked for."""
    leaf = _ALL[key]
    return " ".join([leaf.spec.label, leaf.spec.help, key, *map(str, leaf.choices), _OTHER_NAMES.get(key, "")])


def _json(of_browser: Any) -> str:
    return escape(json.dumps(of_browser, ensure_ascii=False))


def changed_view(flat: Mapping[str, Any]) -> str:
    """Which settings differ from their defaults, each marked at its control by the browser, where a press resets it."""
    changed = {key: leaf for key, leaf in OWN.items() if flat[key] != leaf.default}
    marks = {elem_id(key): [key, leaf.spec.label, value_text(leaf.default)] for key, leaf in changed.items()}
    count = f"{len(changed)} changed from the defaults" if changed else "All at their defaults"
    return f'<p class="db-quiet" data-db-changed="{_json(marks)}">{count}</p>'
