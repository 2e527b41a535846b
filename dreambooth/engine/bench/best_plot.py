"""What pictures that are held out say of runs, beside what the runs' results draw, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

# What is shown of each result: key, label and colour.
LINES = (
    ("held_out", "pictures held out, predicted better than before", "#c2410c"),
    ("learned", "learned pictures, likewise", "#d6a98a"),
    ("likeness_on_backgrounds", "what is drawn: likeness on other backgrounds", "#0f766e"),
)
_COLUMNS, _WIDTH, _HEIGHT, _GAP, _HEAD, _LEGEND = 3, 270, 130, 26, 24, 30
_STYLE = """
text { font: 12px sans-serif; fill: #333 } .soft { fill: #777; font-size: 11px } .paper { fill: #fff }
polyline { fill: none; stroke-width: 2 } .axis { stroke: #ccc } .best { stroke: #333; stroke-dasharray: 3 3 }
"""

Row = dict[str, Any]


def draw(taken: dict[str, list[Row]], best: dict[str, int]) -> str:
    """An SVG picture: a plot for each run, from 0 to 1, with a line after so many images as it calls its best."""
    lines = -(-len(taken) // _COLUMNS)
    width = _COLUMNS * (_WIDTH + _GAP)
    height = _LEGEND + lines * (_HEAD + _HEIGHT + _GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">',
        f"<title>When runs were best</title><style>{_STYLE}</style>",
        f'<rect class="paper" width="{width}" height="{height}"/>',
        *_legend(),
    ]
    for number, (name, rows) in enumerate(taken.items()):
        left = (number % _COLUMNS) * (_WIDTH + _GAP)
        top = _LEGEND + (number // _COLUMNS) * (_HEAD + _HEIGHT + _GAP)
        parts += [f'<g transform="translate({left} {top})">', *_plot(name, rows, best[name]), "</g>"]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _legend() -> list[str]:
    parts, left = [], 0
    for _, label, colour in LINES:
        parts.append(f'<rect x="{left}" y="8" width="14" height="3" fill="{colour}"/>')
        parts.append(f'<text x="{left + 20}" y="14">{escape(label)}</text>')
        left += 40 + 6 * len(label)
    return parts


def _plot(name: str, rows: Sequence[Row], best: int) -> list[str]:
    last = max(row["images"] for row in rows)

    def place(row: Row, key: str) -> str:
        value = max(0.0, min(1.0, row[key]))
        return f"{_WIDTH * row['images'] / last:.1f},{_HEAD + _HEIGHT * (1 - value):.1f}"

    bottom, at = _HEAD + _HEIGHT, f"{_WIDTH * best / last:.1f}"
    parts = [
        f'<text x="0" y="14">{escape(name)}</text>',
        f'<line class="axis" x1="0" x2="{_WIDTH}" y1="{bottom}" y2="{bottom}"/>',
        f'<line class="best" x1="{at}" x2="{at}" y1="{_HEAD}" y2="{bottom}"/>',
        f'<text class="soft" x="{_WIDTH}" y="{bottom + 14}" text-anchor="end">{last:,} images</text>',
    ]
    for key, _, colour in LINES:
        points = " ".join(place(row, key) for row in rows)
        parts.append(f'<polyline points="{points}" stroke="{colour}"/>')
    return parts
