"""Curves of a run as inline SVG, in the colours of the page around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise

_WIDTH, _HEIGHT = 400, 64
_MOST_POINTS = 200

Points = Sequence[tuple[float, float]]


def curve(label: str, points: Points, whole: float, kind: str, beside: Mapping[str, Points] | None = None) -> str:
    """A line from (step, value) pairs; `whole` is the step at the right edge, so that it grows to the right. `beside`
    has thinner lines of the same scale by their names, which a legend tells."""
    if len(points) < 2:
        return ""
    lines = {label: _averaged(points)} | {name: _averaged(line) for name, line in (beside or {}).items()}
    values = [value for line in lines.values() for _, value in line]
    low, high = min(0.0, *values), max(values) or 1.0
    drawn = "".join(
        f'<polyline class="db-line-{number}" points="{_placed(line, whole, low, high)}" />'
        for number, line in enumerate(lines.values())
    )
    words = "; ".join(
        f"{name}: now {line[-1][1]:.3g}, at most {max(value for _, value in lines[name]):.3g}"
        for name, line in ((label, points), *(beside or {}).items())
    )
    return (
        f'<figure class="db-curve db-{kind}"><figcaption><span>{escape(label)}</span><b>{points[-1][1]:.3g}</b>'
        f'</figcaption><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(words)}">{drawn}</svg>{_legend(beside or {})}</figure>'
    )


def _placed(line: Points, whole: float, low: float, high: float) -> str:
    """The points of a line as SVG takes them."""
    spread = (high - low) or 1.0
    return " ".join(
        f"{_WIDTH * step / max(whole, 1):.1f},{4 + (_HEIGHT - 8) * (1 - (value - low) / spread):.1f}"
        for step, value in line
    )


def _legend(beside: Mapping[str, Points]) -> str:
    """Which thin line is whose, and where it is now."""
    entries = "".join(
        f'<span class="db-line-{number}">{escape(name)} <b>{line[-1][1]:.3g}</b></span>'
        for number, (name, line) in enumerate(beside.items(), 1)
    )
    return f'<p class="db-axis">{entries}</p>' if entries else ""


def _averaged(points: Points) -> list[tuple[float, float]]:
    """At most so many points, each the mean of its neighbours."""
    if len(points) <= _MOST_POINTS:
        return list(points)
    edges = [round(i * len(points) / _MOST_POINTS) for i in range(_MOST_POINTS + 1)]
    groups = [points[start:end] for start, end in pairwise(edges)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]
