"""The sweep as one picture: a row for each option, a column for each figure, the recipe's own value as a line."""

from __future__ import annotations

from html import escape
from typing import Any

# What is shown: key, heading, and whether more of it is better.
COLUMNS = (
    ("likeness", "likeness", True),
    ("likeness_on_backgrounds", "on other backgrounds", True),
    ("prompt_following", "follows the prompt", True),
    ("class_variety", "class variety", True),
    ("class_drift", "class drift", False),
)
_ROW, _LABEL, _WIDTH, _GAP, _TOP = 20, 210, 130, 22, 46
_STYLE = """
text { font: 12px sans-serif; fill: #333 } .head { font-weight: bold } .soft { fill: #777; font-size: 11px }
.line { stroke: #999; stroke-dasharray: 3 3 } .rail { stroke: #e4e4e4 } .span { stroke-width: 3; opacity: .45 }
.better { fill: #1a7f4b; stroke: #1a7f4b } .worse { fill: #c0392b; stroke: #c0392b }
.alike { fill: #5b6b7f; stroke: #5b6b7f } .paper { fill: #fff }
"""

Rows = list[dict[str, Any]]


def draw(rows: Rows) -> str:
    """An SVG picture of the sweep's rows, those of a recipe under the recipe's own."""
    bases = {row["name"]: row for row in rows if ":" not in row["name"]}
    width = _LABEL + len(COLUMNS) * (_WIDTH + _GAP)
    height = _TOP + _ROW * (len(rows) + len(bases)) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">',
        f"<title>What each option does to what is learned</title><style>{_STYLE}</style>",
        f'<rect class="paper" width="{width}" height="{height}"/>',
    ]
    for column, (_, heading, more) in enumerate(COLUMNS):
        x = _x(column, 0)
        parts.append(f'<text class="head" x="{x}" y="16">{escape(heading)}</text>')
        parts.append(f'<text class="soft" x="{x}" y="31">0 to 1, {"more" if more else "less"} is better</text>')
    y = _TOP
    for row in rows:
        name, _, label = row["name"].partition(": ")
        if not label and y > _TOP:
            y += _ROW  # a gap before each recipe
        parts += _row(row, bases.get(name) if label else None, label or name, y)
        y += _ROW
    return "\n".join([*parts, "</svg>"]) + "\n"


def _row(row: dict[str, Any], base: dict[str, Any] | None, label: str, y: int) -> list[str]:
    middle = y + _ROW // 2
    bold = "" if base else ' class="head"'
    parts = [f'<text{bold} x="{12 if base else 0}" y="{middle + 4}">{escape(label)}</text>']
    for column, (key, _, more) in enumerate(COLUMNS):
        low, high = row[f"{key}_span"]
        kind = _kind(row, base, key, more) if base else "alike"
        parts.append(f'<line class="rail" x1="{_x(column, 0)}" x2="{_x(column, 1)}" y1="{middle}" y2="{middle}"/>')
        if base:
            at = _x(column, base[key])
            parts.append(f'<line class="line" x1="{at}" x2="{at}" y1="{y}" y2="{y + _ROW}"/>')
        span = f'x1="{_x(column, low)}" x2="{_x(column, high)}" y1="{middle}" y2="{middle}"'
        parts.append(f'<line class="span {kind}" {span}/>')
        value = f"<title>{escape(label)}: {row[key]:.2f} ({low:.2f} to {high:.2f})</title>"
        parts.append(f'<circle class="{kind}" cx="{_x(column, row[key])}" cy="{middle}" r="4">{value}</circle>')
    return parts


def _kind(row: dict[str, Any], base: dict[str, Any], key: str, more: bool) -> str:
    """Better or worse only where the two were measured with several seeds, and those do not overlap."""
    if min(row["seeds"], base["seeds"]) < 2:
        return "alike"
    (low, high), (base_low, base_high) = row[f"{key}_span"], base[f"{key}_span"]
    if low > base_high:
        return "better" if more else "worse"
    if high < base_low:
        return "worse" if more else "better"
    return "alike"


def _x(column: int, value: float) -> float:
    return round(_LABEL + column * (_WIDTH + _GAP) + max(0.0, min(1.0, value)) * _WIDTH, 1)
