"""Learning-rate curves: the share of the full rate at a point of the run, both between 0 and 1.

A point is the share of the run's images that have been seen, so batch size, accumulation and class pictures do not
move a curve.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from dreambooth.core.run_length import Budget
from dreambooth.core.settings import Settings, learning_rate
from dreambooth.core.settings.optimization import LearningRate

_ONE_CYCLE_START = 1 / 25  # of the full rate; both as in PyTorch's OneCycleLR, after arXiv 1708.07120
_ONE_CYCLE_RISE = 0.3  # of the run


def rate_factor(rates: LearningRate, progress: float) -> float:
    """`progress` is the share of the run's images seen so far."""
    if rates.scheduler == "one_cycle":
        return _one_cycle(rates, progress)
    if progress < rates.warmup:
        return progress / rates.warmup
    rest = min(1.0, (progress - rates.warmup) / (1 - rates.warmup))
    return rates.minimum + (1 - rates.minimum) * _SHAPES[rates.scheduler](rates, rest)


def text_images(settings: Settings, budget: Budget) -> float:
    """How many images are seen before what reads the prompts stops learning: the text encoder, or a word."""
    if settings.words_learn:
        return settings.words_share * budget.images
    if stop := settings.tuning.text_encoder_steps:
        return budget.images_seen(stop)
    return settings.tuning.text_encoder_ratio * budget.images


def curve(settings: Settings, budget: Budget, points: int = 101) -> list[dict[str, float]]:
    """The rates over a whole run, for drawing: images seen, and the rates of the UNet, the text encoder and words; 0
    where one of them rests. A second text encoder is there where it has a rate of its own."""
    drawn, reading_learns = [], text_images(settings, budget)
    to_the_end = budget.images + 1
    reads = to_the_end if reading_learns >= budget.images else reading_learns
    learn = {
        "unet": 0 if settings.is_embedding else to_the_end,
        "text_encoder": reads if settings.tuning.text_encoder_learns else 0,
        "words": reads if settings.words_learn else 0,
    }
    full = {part: learning_rate(settings, part) for part in learn}
    if settings.text_parts == ("text_encoder_2",):
        full["text_encoder"] = learning_rate(settings, "text_encoder_2")
    elif len(settings.text_parts) == 2 and settings.learning.text_encoder_2_ratio != 1:
        learn["text_encoder_2"], full["text_encoder_2"] = reads, learning_rate(settings, "text_encoder_2")
    for point in range(points):
        progress = point / (points - 1)
        factor, images = rate_factor(settings.learning, progress), progress * budget.images
        rates = {part: full[part] * factor if images < end else 0.0 for part, end in learn.items()}
        drawn.append({"images": round(images), **rates})
    return drawn


def _cosine(rates: LearningRate, rest: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * rest))


def _cosine_with_restarts(rates: LearningRate, rest: float) -> float:
    """SGDR (arXiv 1608.03983) with cycles of one length."""
    return 0.0 if rest >= 1 else _cosine(rates, round(rest * rates.cycles, 9) % 1)


def _rex(rates: LearningRate, rest: float) -> float:
    """Reflected exponential (arXiv 2107.04197, equation 2)."""
    return (1 - rest) / (0.5 + 0.5 * (1 - rest))


def _one_cycle(rates: LearningRate, progress: float) -> float:
    """Rises from a twenty-fifth to the full rate and falls to the least, both along a cosine."""
    rise = rates.warmup or _ONE_CYCLE_RISE
    if progress < rise:
        return _ONE_CYCLE_START + (1 - _ONE_CYCLE_START) * (1 - _cosine(rates, progress / rise))
    return rates.minimum + (1 - rates.minimum) * _cosine(rates, min(1.0, (progress - rise) / (1 - rise)))


_SHAPES: dict[str, Callable[[Any, float], float]] = {
    "constant": lambda rates, rest: 1.0,
    "linear": lambda rates, rest: 1 - rest,
    "cosine": _cosine,
    "cosine_with_restarts": _cosine_with_restarts,
    "polynomial": lambda rates, rest: (1 - rest) ** rates.power,
    "rex": _rex,
}
