"""Settings of training that do not go together, each with the mend; found before anything starts."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from dreambooth.core.settings import Settings

PRODIGY_LEAST_RATE = 0.01
_NO_EPSILON = ("lion", "lion_8bit", "paged_lion_8bit")


def training(settings: Settings) -> list[str]:
    """Every problem of the optimizer, the memory, the previews and the reports; one sentence each."""
    return [
        *_optimizer(settings),
        *_prodigy(settings),
        *_schedule_free(settings),
        *_bf16_weights(settings),
        *_previews_and_rests(settings),
        *_webhook(settings.reporting.webhook_url),
    ]


def rate_keys(settings: Settings) -> tuple[str, str]:
    """The keys of the learning rates that count: of the UNet and of the text encoder."""
    lora = "lora_" if settings.is_lora else ""
    return f"learning.{lora}learning_rate", f"learning.{lora}text_encoder_learning_rate"


def _optimizer(settings: Settings) -> list[str]:
    chosen, problems = settings.optimizer, []
    if chosen.epsilon and chosen.name in _NO_EPSILON:
        problems.append(f"optimizer.epsilon: {chosen.name} has none; set it to 0.")
    if chosen.beta2 and chosen.name == "adafactor":
        problems.append("optimizer.beta2: adafactor works out its own; set it to 0.")
    return problems


def _prodigy(settings: Settings) -> list[str]:
    if settings.optimizer.name != "prodigy":
        return []
    unet_key, text_key = rate_keys(settings)
    unet, text = (getattr(settings.learning, key.split(".")[1]) for key in (unet_key, text_key))
    if unet < PRODIGY_LEAST_RATE:
        return [
            f"{unet_key}: it is {unet:g}, but prodigy finds the rate itself and takes this as a factor; set it to 1."
        ]
    if settings.tuning.text_encoder_ratio and text not in (unet, 0):
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


def _bf16_weights(settings: Settings) -> list[str]:
    if not settings.memory.bf16_weights:
        return []
    if settings.is_lora:
        return ["memory.bf16_weights: a LoRA is small and its model lies in half precision anyway; turn it off."]
    if settings.tuning.mixed_precision not in ("auto", "bf16"):
        chosen = settings.tuning.mixed_precision
        return [f"tuning.mixed_precision: it is {chosen}, but memory.bf16_weights computes in bf16; set it to bf16."]
    return []


def _previews_and_rests(settings: Settings) -> list[str]:
    problems = []
    for name in ("width", "height"):
        pixels = getattr(settings.previews, name)
        if pixels % 8 or 0 < pixels < 64:
            problems.append(f"previews.{name}: {pixels} is not a multiple of 8 of at least 64 (or 0).")
    often, seconds = settings.intervals.epoch_pause_frequency, settings.intervals.epoch_pause_time
    if often and not seconds:
        problems.append(
            "intervals.epoch_pause_time: a rest of 0 seconds is none; set it, or epoch_pause_frequency to 0."
        )
    if seconds and not often:
        problems.append(
            "intervals.epoch_pause_frequency: it is 0, so there are no rests; set it, or epoch_pause_time to 0."
        )
    return problems


def _webhook(url: str) -> list[str]:
    """What is wrong with the address, without showing it."""
    if not url:
        return []
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return ["reporting.webhook_url: it is not an address; copy it again from the service that gave it."]
    if parts.scheme != "https" or not host:
        return ["reporting.webhook_url: it must be an https address; others would show it to everybody on the way."]
    if parts.username or parts.password or port not in (None, 443):
        return ["reporting.webhook_url: it must be a plain https address, without a user or a port of its own."]
    if is_private(host) or "." not in host.strip("."):
        return ["reporting.webhook_url: it leads to this machine or its own network; name an address of the internet."]
    return []


def is_private(host: str) -> bool:
    """Whether an address in numbers is not one of the open internet; a name is judged where it leads, later."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith((".localhost", ".local", ".internal"))
    mapped = getattr(address, "ipv4_mapped", None)
    return not (mapped or address).is_global or address.is_multicast
