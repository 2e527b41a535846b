"""Optimizers, and what they cannot do together with other settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreambooth.core.settings.course import LearningRate

if TYPE_CHECKING:
    from dreambooth.core.settings import Settings

_PRODIGY_LEAST_RATE, _MOST_RATE = 0.01, 0.1
_NO_EPSILON = ("lion", "lion_8bit", "paged_lion_8bit")


def found(settings: Settings) -> list[str]:
    return [
        *_optimizer(settings),
        *_rates(settings),
        *_prodigy(settings),
        *_schedule_free(settings),
    ]


def rate_keys(settings: Settings) -> tuple[str, str]:
    """The keys of the learning rates that count: of the UNet and of the text encoder; of words alone twice theirs."""
    if settings.is_embedding:
        return "learning.embedding_learning_rate", "learning.embedding_learning_rate"
    lora = "lora_" if settings.is_lora else ""
    return f"learning.{lora}learning_rate", f"learning.{lora}text_encoder_learning_rate"


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
    keys = dict.fromkeys(rate_keys(settings)[: 2 if settings.text_learns else 1])
    found = {key: getattr(settings.learning, key.split(".")[1]) for key in keys}
    return [
        f"{key}: it is {rate:g}, which is a factor for prodigy; for {settings.optimizer.name} take the default, "
        f"{getattr(LearningRate(), key.split('.')[1]):g}, or at most {_MOST_RATE:g}."
        for key, rate in found.items()
        if rate > _MOST_RATE
    ]


def _prodigy(settings: Settings) -> list[str]:
    if settings.optimizer.name != "prodigy":
        return []
    unet_key, text_key = rate_keys(settings)
    unet, text = (getattr(settings.learning, key.split(".")[1]) for key in (unet_key, text_key))
    if unet < _PRODIGY_LEAST_RATE:
        return [
            f"{unet_key}: it is {unet:g}, but prodigy finds the rate itself and takes this as a factor; set it to 1."
        ]
    if settings.words_learn:
        text_key, text = "learning.embedding_learning_rate", settings.learning.embedding_learning_rate
    if settings.text_learns and text not in (unet, 0):
        return [f"{text_key}: prodigy has one factor for both parts; set it to {unet:g} as well, or to 0."]
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
    return problems
