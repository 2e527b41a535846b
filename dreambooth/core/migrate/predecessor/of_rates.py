"""The predecessor's learning rates and optimizers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dreambooth.core.migrate.predecessor import controls
from dreambooth.core.migrate.report import Look, Migration, number

SCHEDULES = {  # ours, and why it is not the same
    "constant_with_warmup": ("constant", ""),
    "constant": ("constant", "it began lower there"),
    "linear": ("constant", "it rose there and never fell"),
    "linear_with_warmup": ("linear", ""),
    "cosine": ("cosine", ""),
    "cosine_annealing": ("cosine", ""),
    "cosine_annealing_with_restarts": ("cosine_with_restarts", "its first fall was half as long there"),
    "cosine_with_restarts": ("cosine_with_restarts", ""),
    "polynomial": ("polynomial", ""),
    "rex": ("rex", "its curve was steeper at the end there"),
}
_WARMED_UP = ("constant_with_warmup", "linear_with_warmup", "cosine", "cosine_with_restarts", "polynomial", "rex")
_SHAPED_BY = {  # what else has a meaning there, and none here
    "constant": ("lr_factor", "lr_scale_pos"),
    "linear": ("lr_factor",),
    "cosine_annealing": ("lr_scale_pos",),
    "cosine_annealing_with_restarts": ("lr_scale_pos",),
}
OPTIMIZERS = {
    "Torch AdamW": "adamw",
    "8bit AdamW": "adamw_8bit",
    "8Bit Adam": "adamw_8bit",
    "Paged 8bit AdamW": "paged_adamw_8bit",
    "Lion": "lion",
    "8bit Lion": "lion_8bit",
    "Paged 8bit Lion": "paged_lion_8bit",
    "Adafactor": "adafactor",
    "CAME": "came",
    "Prodigy": "prodigy",
}
_FINDS_RATES = "Dadaptation"  # how the names of D-Adaptation's optimizers end
RATES = {
    "learning_rate": "learning.learning_rate",
    "txt_learning_rate": "learning.text_encoder_learning_rate",
    "lora_learning_rate": "learning.lora_learning_rate",
    "lora_txt_learning_rate": "learning.lora_text_encoder_learning_rate",
}


def take(theirs: Mapping[str, Any], listed: Sequence[Any], look: Look, into: Migration) -> None:
    _optimizer(theirs, into)
    _rates(theirs, into)
    if theirs.get("lr_scheduler"):
        _schedule(str(theirs["lr_scheduler"]), theirs, listed, look, into)


def _rates(theirs: Mapping[str, Any], into: Migration) -> None:
    is_found = into.settings.get("optimizer.name") == "prodigy"
    for key, ours in RATES.items():
        if is_found:
            into.take(key, ours, 1.0, "Prodigy finds the rate itself; this is a factor")
        elif theirs.get(key) is not None:
            into.take(key, ours, theirs[key])
    if not is_found and theirs.get("learning_rate") is not None and "txt_learning_rate" not in theirs:
        why = "one rate was for both parts there"
        into.take("learning_rate", RATES["txt_learning_rate"], theirs["learning_rate"], why)


def _schedule(name: str, theirs: Mapping[str, Any], listed: Sequence[Any], look: Look, into: Migration) -> None:
    ours, why = SCHEDULES.get(name, ("cosine", "the nearest that there is here"))
    into.take("lr_scheduler", "learning.scheduler", ours, f"{name}: {why}" if why else "")
    _shape(name, theirs, ours, into)
    folders = [str(one.get("instance_data_dir") or "") for one in listed if isinstance(one, dict)]
    images = number(theirs.get("num_train_epochs"), 100) * sum(look(folder).pictures for folder in folders)
    steps = number(theirs.get("lr_warmup_steps"))
    if name == "linear":
        share, why = min(0.9, number(theirs.get("lr_scale_pos"), 0.5)), "it rose over this share of the run"
        into.take("lr_scale_pos", "learning.warmup", share, why)
    elif steps and name in _WARMED_UP and not images:
        into.leave("lr_warmup_steps", steps, "a share of the run here; your pictures were not found to work it out")
    elif steps and name in _WARMED_UP:
        share = round(min(0.9, steps / images), 4)
        into.take("lr_warmup_steps", "learning.warmup", share, f"{steps:g} of the run's {images:g} pictures seen")


def _shape(name: str, theirs: Mapping[str, Any], ours: str, into: Migration) -> None:
    """What belongs to one kind of schedule alone."""
    if ours == "cosine_with_restarts" and theirs.get("lr_cycles"):
        into.take("lr_cycles", "learning.cycles", max(1, number(theirs["lr_cycles"], 1)))
    if ours == "polynomial" and theirs.get("lr_power"):
        into.take("lr_power", "learning.power", number(theirs["lr_power"], 1))
    least, full = number(theirs.get("learning_rate_min")), number(theirs.get("learning_rate"))
    if name.startswith("cosine_annealing") and least and full:
        share = round(min(1.0, least / full), 4)
        into.take("learning_rate_min", "learning.minimum", share, f"{least:g} is this share of the learning rate")
    for key in _SHAPED_BY.get(name, ()):
        if key in theirs:
            into.leave(key, theirs[key], controls.BY_KEY[key].reason)


def _optimizer(theirs: Mapping[str, Any], into: Migration) -> None:
    name = str(theirs.get("optimizer") or "")
    if name in OPTIMIZERS:
        into.take("optimizer", "optimizer.name", OPTIMIZERS[name])
    elif name.endswith(_FINDS_RATES):
        into.take("optimizer", "optimizer.name", "prodigy", f"{name} is not here; prodigy came of it")
    elif name:
        into.take("optimizer", "optimizer.name", "adamw", f"there is no such optimizer here as {name}")
    elif "use_8bit_adam" in theirs:
        into.take("use_8bit_adam", "optimizer.name", "adamw_8bit" if theirs["use_8bit_adam"] else "adamw")
