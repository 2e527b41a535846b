"""Optimizers, and what they cannot do together with other settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreambooth.core.settings.optimization import LearningRate

if TYPE_CHECKING:
    from dreambooth.core.settings import Settings

PRODIGY_LEAST_RATE, _MOST_RATE = 0.01, 0.1
_NO_EPSILON = ("lion", "lion_8bit", "paged_lion_8bit")


def found(settings: Settings) -> list[str]:
    return [
        *_optimizer(settings),
        *_rates(settings),
        *_prodigy(settings),
        *_schedule_free(settings),
    ]


def rates(settings: Settings) -> dict[str, float]:
    """The learning rates that count, by their keys: of the UNet, the text encoder and words, each if it learns."""
    lora = "lora_" if settings.is_lora else ""
    counts = {
        f"{lora}learning_rate": settings.trains_unet,
        f"{lora}text_encoder_learning_rate": settings.tuning.text_encoder_learns and not settings.is_embedding,
        "embedding_learning_rate": settings.words_learn,
    }
    return {f"learning.{name}": getattr(settings.learning, name) for name, learns in counts.items() if learns}


def _optimizer(settings: Settings) -> list[str]:
    chosen, problems = settings.optimizer, []
    if chosen.epsilon and chosen.name in _NO_EPSILON:
        problems.append(f"optimizer.epsilon: {chosen.name} has none; set it to 0.")
    if chosen.beta2 and chosen.name == "adafactor":
        problems.append("optimizer.beta2: adafactor works out its own; set it to 0.")
    if chosen.d_coef != 1 and chosen.name != "prodigy":
        problems.append(f"optimizer.d_coef: {chosen.name} has none; set it to 1.")
    return problems


def _rates(settings: Settings) -> list[str]:
    """A rate that is prodigy's factor, and stayed when another optimizer was chosen, ruins any model at once."""
    if settings.optimizer.name == "prodigy":
        return []
    return [
        f"{key}: it is {rate:g}, which is a factor for prodigy; for {settings.optimizer.name} take the default, "
        f"{getattr(LearningRate(), key.split('.')[1]):g}, or at most {_MOST_RATE:g}."
        for key, rate in rates(settings).items()
        if rate > _MOST_RATE
    ]


def _prodigy(settings: Settings) -> list[str]:
    if settings.optimizer.name != "prodigy" or not (found := rates(settings)):
        return []
    (key, factor), *others = found.items()
    if factor < PRODIGY_LEAST_RATE:
        return [f"{key}: it is {factor:g}, but prodigy finds the rate itself and takes this as a factor; set it to 1."]
    if other := next((other for other, rate in others if rate not in (factor, 0)), None):
        return [f"{other}: prodigy has one factor for both parts; set it to {factor:g} as well, or to 0."]
    if "text_encoder_2" in settings.text_parts and (ratio := settings.learning.text_encoder_2_ratio) != 1:
        return [f"learning.text_encoder_2_ratio: it is {ratio:g}, but prodigy has one factor for all; set it to 1."]
    if settings.memory.bf16_weights:
        return [
            "memory.bf16_weights: prodigy looks at all weights at once in full precision; choose another optimizer."
        ]
    return []


def _schedule_free(settings: Settings) -> list[str]:
    if settings.optimizer.name != "adamw_schedule_free":
        return []
    problems, name = [], settings.learning.scheduler
    if name != "constant":
        problems.append(f"learning.scheduler: it is {name}, but adamw_schedule_free takes none; set it to constant.")
    if settings.tuning.use_ema:
        problems.append("tuning.use_ema: adamw_schedule_free averages the weights itself; turn it off.")
    if settings.memory.bf16_weights:
        problems.append("memory.bf16_weights: adamw_schedule_free needs full precision; choose another optimizer.")
    if settings.is_lora and settings.lora.max_norm:
        problems.append(
            "lora.max_norm: adamw_schedule_free goes by an average, which would stay longer; set it to 0, or choose "
            "another optimizer."
        )
    return problems
