"""What a run shows, writes and tells."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from dreambooth.core.captions import FILEWORDS, NO_CAPTION
from dreambooth.core.files import file_names
from dreambooth.core.network_addresses import is_private

if TYPE_CHECKING:
    from dreambooth.core.settings import Settings

LONGEST_NAME, LONGEST_NAME_BYTES = 80, 180  # as of a model; steps and endings follow


def found(settings: Settings) -> list[str]:
    return [
        *_negative_prompts(settings),
        *_rests(settings),
        *_name(settings.saving.custom_model_name),
        *_webhook(settings.reporting.webhook_url),
    ]


def _negative_prompts(settings: Settings) -> list[str]:
    """They are no picture's, so that no caption can stand in them."""
    asked = {"previews.negative_prompt": settings.previews.negative_prompt}
    for row, concept in enumerate(settings.concepts):
        asked[f"concepts.{row}.class_negative_prompt"] = concept.class_negative_prompt
    return [f"{key}: {NO_CAPTION}" for key, words in asked.items() if FILEWORDS in words]


def _rests(settings: Settings) -> list[str]:
    problems = []
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


def _name(name: str) -> list[str]:
    if name and not file_names.is_sound(name):
        return [f"saving.custom_model_name: {name!r} cannot be a file's name; choose another."]
    if len(name) > LONGEST_NAME:
        return [f"saving.custom_model_name: it has {len(name)} characters; leave at most {LONGEST_NAME}."]
    if (length := len(name.encode())) > LONGEST_NAME_BYTES:
        return [
            f"saving.custom_model_name: its letters take {length} bytes of a file's name; leave at most "
            f"{LONGEST_NAME_BYTES}."
        ]
    return []


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
