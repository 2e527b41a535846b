"""How good a run is, as far as pictures that it does not learn can tell: two lines, the best moment, some words."""

from __future__ import annotations

from collections.abc import Sequence

from dreambooth.core.formatting import percent
from dreambooth.core.job_history import JobHistory
from dreambooth.core.validation import Measure
from dreambooth.service.resume_run import ENDED

_WIDTH, _HEIGHT, _EDGE = 400, 72, 6

HINT = "With one picture held out a run tells when it is best: Pictures Held Out, under Concepts."
OF_FEW = "With few pictures mirror images tell, too: Measure Mirror Images, under Settings."

Point = tuple[float, float]


def quality_view(story: JobHistory) -> str:
    """Nothing until something has been measured since the run began; of a run that is not measured, how to."""
    best, measures = story.best, story.measures
    if not measures and story.step:
        return f'<p class="db-quiet"><span>{HINT}</span> <span>{OF_FEW}</span></p>'
    if best is None:
        return ""
    lines = _lines(measures, best, max(story.step.get("steps", 0), measures[-1].step))
    drift, held_out = measures[-1].drift, measures[-1].held_out
    way = "better than before" if round(held_out, 2) >= 0 else "worse than before"
    moved = f'<span class="db-of-class">The class has moved by <b>{drift:.1%}</b></span>' if drift is not None else ""
    return (
        f"<h4>How good it is <small>{_words(best, measures[-1], has_ended=story.status in ENDED)}</small></h4>"
        f'<figure class="db-curve db-quality" role="img" aria-label="Pictures not learned: {percent(abs(held_out))} '
        f'{way}, at best {percent(best.held_out)} after {best.images:,} pictures seen">{lines}</figure>'
        '<p class="db-axis"><span class="db-of-unet">Pictures not learned: '
        f"<b>{percent(abs(held_out))}</b> {way}</span>"
        f'<span class="db-of-text_encoder">Learned pictures: <b>{percent(measures[-1].learned)}</b></span>{moved}</p>'
    )


def _words(best: Measure, last: Measure, *, has_ended: bool) -> str:
    if best.held_out <= 0:
        return "no better than before" if has_ended else "no better than before so far"
    if best == last:
        return "best at its end; a longer run may be better still" if has_ended else "still getting better"
    return f"best after {best.images:,} pictures seen"


def _lines(measures: Sequence[Measure], best: Measure, whole: float) -> str:
    values = [value for one in measures for value in (one.held_out, one.learned)]
    low, high = min(0.0, *values), max(*values, 0.01)

    def place(one: Measure, value: float) -> Point:
        return _WIDTH * one.step / max(whole, 1), _EDGE + (_HEIGHT - 2 * _EDGE) * (high - value) / (high - low)

    held_out = [place(one, one.held_out) for one in measures]
    learned = [place(one, one.learned) for one in measures]
    x, y = place(best, best.held_out)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" aria-hidden="true">'
        f'<polyline class="db-of-text_encoder" points="{_drawn(learned)}" />'
        f'<polyline points="{_drawn(held_out)}" /></svg>'
        f'<i style="left:{x / _WIDTH:.2%};top:{y / _HEIGHT:.2%}"></i>'
    )


def _drawn(points: Sequence[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
