"""What kohya_ss, the page for kohya's scripts, saves, as the scripts' arguments; and arguments that hold several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dreambooth.core.migrate.reading import exact, nothing
from dreambooth.core.migrate.report import number

_NAMES = {
    "max_resolution": "resolution",
    "optimizer": "optimizer_type",
    "lora_network_weights": "network_weights",
    "sdxl_checkbox": "sdxl",
    "sdxl_cache_text_encoder_outputs": "cache_text_encoder_outputs",
    "sdxl_no_half_vae": "no_half_vae",
}
_MODULES = {  # what stands for a network there: the module, and the kind in it
    "Standard": ("networks.lora", ""),
    "Kohya LoCon": ("networks.lora", ""),
    "LoCon": ("lycoris.kohya", "locon"),
    "LyCORIS/LoCon": ("lycoris.kohya", "locon"),
    "LyCORIS/LoHa": ("lycoris.kohya", "loha"),
    "LyCORIS/LoKr": ("lycoris.kohya", "lokr"),
    "Kohya LoHa": ("networks.loha", "loha"),
    "Kohya LoKr": ("networks.lokr", "lokr"),
    "LyCORIS/Diag-OFT": ("lycoris.kohya", "diag-oft"),
    "LyCORIS/BOFT": ("lycoris.kohya", "boft"),
    "LyCORIS/Native Fine-Tuning": ("lycoris.kohya", "full"),
}
_HELD = ("network_args", "optimizer_args")


def arguments(theirs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The scripts' arguments, and what the page calls those that have another name there."""
    values, names = dict(theirs), dict[str, str]()
    for there, argument in _NAMES.items():
        if there in values:
            value = values.pop(there)
            if argument not in values or nothing(values[argument]):
                values[argument], names[argument] = value, there
    if isinstance(values.get("xformers"), str):
        chosen = values.pop("xformers")
        values["sdpa" if chosen == "sdpa" else "xformers"] = chosen in ("sdpa", "xformers")
        names["sdpa"] = "xformers"
    _network(values, names)
    _rates(values, names)
    _length(values, names)
    _noise(values)
    if number(values.get("stop_text_encoder_training")) > 0:
        values["stop_text_encoder_training"] = f"{number(values['stop_text_encoder_training']):g}%"
    return values, names


def _network(values: dict[str, Any], names: dict[str, str]) -> None:
    kind = str(values.get("LoRA_type") or "")
    if not kind:
        return
    values.pop("LoRA_type")
    values["network_module"], algo = _MODULES.get(kind, (kind, ""))
    names["network_module"] = "LoRA_type"
    if algo:
        values["algo"], names["algo"] = algo, "LoRA_type"
    if kind == "Standard":  # its fields stay filled, and are not handed on
        for key in ("conv_dim", "conv_alpha"):
            values[key] = 0 if key in values else None
    if "LyCORIS_preset" in values:
        preset = values.pop("LyCORIS_preset")
        if values["network_module"] == "lycoris.kohya":
            values["preset"], names["preset"] = preset, "LyCORIS_preset"


def _rates(values: dict[str, Any], names: dict[str, str]) -> None:
    """0 for both parts' rates is the general one for both; 0 for one of them leaves that part alone."""
    if "network_module" not in values or not {"unet_lr", "text_encoder_lr"} & values.keys():
        return
    unet, text = number(values.get("unet_lr")), number(values.get("text_encoder_lr"))
    if unet and not text:
        values["network_train_unet_only"], names["network_train_unet_only"] = True, "text_encoder_lr"
    elif text and not unet:
        values["network_train_text_encoder_only"], names["network_train_text_encoder_only"] = True, "unet_lr"
    for key, rate in (("unet_lr", unet), ("text_encoder_lr", text)):
        if key in values and not rate:
            values[key] = None


def _length(values: dict[str, Any], names: dict[str, str]) -> None:
    """Epochs count where no number of steps does, and a warmup is a percentage where it is no number of steps."""
    if number(values.get("epoch")) and not number(values.get("max_train_epochs")):
        if not number(values.get("max_train_steps")):
            values["max_train_epochs"], names["max_train_epochs"] = values.pop("epoch"), "epoch"
        if values.get("lr_scheduler") == "cosine_with_restarts" and not number(values.get("lr_scheduler_num_cycles")):
            values["lr_scheduler_num_cycles"] = values.get("epoch") or values.get("max_train_epochs")
    percent = number(values.get("lr_warmup"))
    if percent and not number(values.get("lr_warmup_steps")):
        values["lr_warmup_steps"], names["lr_warmup_steps"] = percent / 100, "lr_warmup"
        values.pop("lr_warmup")


def _noise(values: dict[str, Any]) -> None:
    """Of the two kinds of noise it takes the one that is chosen, whatever stands in the other's fields."""
    kind = values.get("noise_offset_type")
    off = {"Original": ("multires_noise_iterations",), "Multires": ("noise_offset", "adaptive_noise_scale")}
    for key in off.get(str(kind), ()):
        if key in values:
            values[key] = 0
    if str(kind) in off:
        values["noise_offset_type"] = None


def with_parts(theirs: Mapping[str, Any], names: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The arguments with those that hold others taken apart: network_args and optimizer_args."""
    values, called = dict(theirs), dict(names)
    for held in _HELD:
        for name, value in _pairs(values.get(held)):
            values[name], called[name] = value, f"{held}: {name}"
            values[held] = None
    return values, called


def _pairs(entries: Any) -> Iterator[tuple[str, Any]]:
    parts = entries.split() if isinstance(entries, str) else entries if isinstance(entries, list) else []
    for part in parts:
        name, sign, value = str(part).strip().partition("=")
        if sign:
            value = value.strip().strip("\"'")
            yield (
                name.strip().strip("\"'"),
                {"True": True, "False": False, "true": True, "false": False}.get(value, exact(value)),
            )
