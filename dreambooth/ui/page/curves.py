"""Curves of a run as inline SVG, in the colours of the page around them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise

_WIDTH, _HEIGHT = 400, 64
_MOST_POINTS = 200

Points = Sequence[tuple[float, float]]


def curve(label: str, points: Points, whole: float, kind: str) -> str:
    """A line from (step, value) pairs; `whole` is the step at the right edge, so that it grows to the right."""
    if len(points) < 2:
        return ""
    thinned = _averaged(points)
    low, high = min(0.0, *(value for _, value in thinned)), max(value for _, value in thinned) or 1.0
    spread = (high - low) or 1.0
    drawn = " ".join(
        f"{_WIDTH * step / max(whole, 1):.1f},{4 + (_HEIGHT - 8) * (1 - (value - low) / spread):.1f}"
        for step, value in thinned
    )
    last = f"{points[-1][1]:.3g}"
    return (
        f'<figure class="db-curve db-{kind}"><figcaption><span>{escape(label)}</span><b>{last}</b></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label)}: now {last}, at most {high:.3g}"><polyline points="{drawn}" /></svg></figure>'
    )


def _averaged(points: Points) -> list[tuple[float, float]]:
    """At most so many points, each the mean of its neighbours."""
    if len(points) <= _MOST_POINTS:
        return list(points)
    edges = [round(i * len(points) / _MOST_POINTS) for i in range(_MOST_POINTS + 1)]
    groups = [points[start:end] for start, end in pairwise(edges)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]
