"""What was found not to work when the engine's environment was checked; kept in its stamp."""

from __future__ import annotations

import json
from pathlib import Path

from dreambooth.core.install_paths import STAMP
from dreambooth.core.settings import Settings

FAULTS = "faults"  # in the check's report: {setting: {choice: reason}}
_INSTEAD = {"optimizer.name": "another", "memory.attention": "sdpa", "memory.unet_weights": "int8 or another"}


def card_bytes(stamp: Path = STAMP) -> int:
    """The memory of this machine's card; 0 without one, or where nothing is known."""
    try:
        return int(json.loads(stamp.read_text(encoding="utf-8"))["report"]["memory_bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def takes_fp16(stamp: Path = STAMP) -> bool:
    """Whether `auto` means fp16 on this machine: its card is from before bf16."""
    return _is_before_bf16(stamp) and not fault("tuning.mixed_precision", "fp16", stamp)


def takes_full_precision(stamp: Path = STAMP) -> bool:
    """Whether `auto` means full precision on this machine's card, as neither half precision is fit for it."""
    return bool(fault("tuning.mixed_precision", "fp16", stamp)) and _is_before_bf16(stamp)


def _is_before_bf16(stamp: Path) -> bool:
    try:
        is_card = json.loads(stamp.read_text(encoding="utf-8"))["report"]["device"] == "cuda"
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return is_card and bool(fault("memory.bf16_weights", "on", stamp))


def is_proven(key: str, choice: str, device_name: str, stamp: Path = STAMP) -> bool:
    """Whether the check found that a choice of a setting works on a device of this name."""
    try:
        report = json.loads(stamp.read_text(encoding="utf-8"))["report"]
        return bool(report["device_name"] == device_name and choice not in report[FAULTS].get(key, {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def fault(key: str, choice: str, stamp: Path = STAMP) -> str:
    """Why a choice of a setting does not work in the engine's environment; empty if it does or nothing is known."""
    try:
        report = json.loads(stamp.read_text(encoding="utf-8"))["report"]
        return str(report[FAULTS][key].get(choice, ""))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""


def problems(settings: Settings, stamp: Path = STAMP) -> list[str]:
    """What of the settings cannot work in the engine's environment, a sentence each."""
    chosen = (settings.optimizer.name, settings.memory.attention, settings.memory.unet_weights)
    return [
        f"{key}: {choice} does not work here ({reason}); choose {instead}."
        for (key, instead), choice in zip(_INSTEAD.items(), chosen)
        if (reason := fault(key, choice, stamp))
    ]
