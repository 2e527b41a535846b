"""docs/settings.md as a page for the browser, so that help needs no network: its headings, tables and sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape

from dreambooth.core.install_paths import PROJECT

ADDRESS = "dreambooth/page/help"
_REFERENCE = PROJECT / "docs" / "settings.md"
_STYLE = (
    ":root { color-scheme: light dark; } body { font: 15px/1.5 sans-serif; max-width: 1100px; margin: 24px auto; "
    "padding: 0 16px; } table { border-collapse: collapse; } td, th { border-top: 1px solid #8886; "
    "padding: 6px 12px 6px 0; text-align: left; vertical-align: top; } code { font-size: 13px; white-space: nowrap; }"
)


def help_link(section: str, title: str) -> str:
    """A link to what the reference says of a section of the settings."""
    address = f"{ADDRESS}#{section}"
    return f'<a class="db-help" href="{escape(address)}" target="_blank">{escape(title)}: keys, defaults and bounds</a>'


def help_page() -> str:
    """The whole reference; each section can be linked to by its name. Raises OSError where the file is gone."""
    body = "".join(_drawn(_REFERENCE.read_text(encoding="utf-8").split("\n")))
    head = f'<meta charset="utf-8"><title>Dreambooth: all settings</title><style>{_STYLE}</style>'
    return f'<!DOCTYPE html><html lang="en"><head>{head}</head><body>{body}</body></html>'


def _drawn(lines: list[str]) -> Iterator[str]:
    before = ""
    for line in [*lines, ""]:
        is_row = line.startswith("|")
        if is_row != before.startswith("|"):
            yield "<table>" if is_row else "</table>"
        if heading := re.fullmatch(r"(#+) (.+)", line):
            level, words = len(heading[1]), escape(heading[2])
            yield f'<h{level} id="{words}">{words}</h{level}>'
        elif is_row and not re.fullmatch(r"[|\- ]+", line):
            cell = "td" if before.startswith("|") else "th"
            cells = (_inline(one.strip()) for one in re.split(r"(?<!\\)\|", line)[1:-1])
            yield f"<tr>{''.join(f'<{cell}>{one}</{cell}>' for one in cells)}</tr>"
        elif line and not is_row:
            yield f"<p>{_inline(line)}</p>"
        before = line


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text.replace("\\|", "|")))
