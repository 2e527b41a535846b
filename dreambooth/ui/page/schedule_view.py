"""The learning rates over a whole run, drawn before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from dreambooth.core.run_length import Budget, budget
from dreambooth.core.schedules import curve
from dreambooth.core.settings import Settings

_WIDTH, _HEIGHT, _EDGE = 400, 72, 4
_POINTS = 401
PARTS = {"unet": "UNet", "text_encoder": "Text encoder", "text_encoder_2": "Second text encoder", "words": "Embedding"}

Line = tuple[str, Sequence[float]]  # what it is the rate of, and the rates at even steps over the run


def schedule_view(own: Settings, length: Budget | None) -> str:
    """The rates of the UNet, of the text encoder and of words, each where it learns; `length` is None before there are
    pictures.

    A pure function of the settings, so it moves with every control.
    """
    drawn = curve(own, length or budget(own, 1), _POINTS)
    learns = {
        "unet": own.trains_unet,
        "text_encoder": own.tuning.text_encoder_learns,
        "text_encoder_2": "text_encoder_2" in drawn[0],
        "words": own.words_learn,
    }
    lines = [(part, [point[part] for point in drawn]) for part, on in learns.items() if on]
    highest = max((max(rates) for _, rates in lines), default=0.0)
    what = "Factor of the rate that Prodigy finds" if own.optimizer.name == "prodigy" else "Learning rate over the run"
    words = "; ".join(_in_words(line) for line in lines)
    end = f"{length.steps:,} steps" if length else "end of the run"
    return (
        f'<figure class="db-curve db-schedule"><figcaption><span>{what}</span><b>{highest:.3g}</b></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{escape(words)}">'
        f"{''.join(_drawn(line, highest) for line in lines)}</svg>"
        f'<p class="db-axis"><span>start</span>{_legend(lines)}<span>{end}</span></p></figure>'
    )


def _drawn(line: Line, highest: float) -> str:
    part, rates = line
    room = _HEIGHT - 2 * _EDGE
    points = " ".join(
        f"{_WIDTH * at / (_POINTS - 1):g},{_EDGE + room * (1 - rate / (highest or 1)):.1f}"
        for at, rate in enumerate(rates)
    )
    return f'<polyline class="db-of-{part}" points="{points}" />'


def _legend(lines: Sequence[Line]) -> str:
    """Which line is whose; nothing where there is one."""
    if len(lines) < 2:
        return ""
    return "".join(f'<span class="db-of-{part}">{PARTS[part]}</span>' for part, _ in lines)


def _in_words(line: Line) -> str:
    part, rates = line
    return f"{PARTS[part]}: starts at {rates[0]:.3g}, highest {max(rates):.3g}, ends at {rates[-1]:.3g}"
