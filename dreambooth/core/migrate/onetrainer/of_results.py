"""What OneTrainer saves and shows, and how often."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from dreambooth.core.migrate.disk import Disk
from dreambooth.core.migrate.onetrainer import of_training
from dreambooth.core.migrate.reading import Reading, exact, fitting, nothing
from dreambooth.core.models.model_file import SUFFIXES

SAMPLERS = {
    "DDIM": "ddim",
    "EULER": "euler",
    "EULER_A": "euler_a",
    "DPMPP": "dpm++",
    "DPMPP_SDE": "dpm++_sde",
    "UNIPC": "unipc",
    "EULER_KARRAS": "euler_karras",
    "DPMPP_KARRAS": "dpm++_karras",
    "DPMPP_SDE_KARRAS": "dpm++_sde_karras",
    "UNIPC_KARRAS": "unipc",
}
_OF_A_SAMPLE = {
    "negative_prompt": "previews.negative_prompt",
    "width": "previews.width",
    "height": "previews.height",
    "seed": "previews.seed",
    "diffusion_steps": "previews.steps",
    "cfg_scale": "previews.guidance_scale",
}
_OFTEN = {"sample_after": "save_preview_every", "save_every": "save_model_every", "backup_after": "save_state_every"}
_FOLDER = re.compile(r"[/\\]")


def take(read: Reading, disk: Disk) -> None:
    for key, ours in _OFTEN.items():
        _how_often(read, key, f"intervals.{ours}")
    name = _FOLDER.split(str(read.theirs.get("output_model_destination") or ""))[-1]
    if name.lower().endswith(SUFFIXES):
        name = name.rpartition(".")[0]
    if name:
        read.take("output_model_destination", "saving.custom_model_name", name)
    form = str(read.theirs.get("output_model_format") or "")
    if form in ("SAFETENSORS", "LEGACY_SAFETENSORS", "ORIGINAL_SINGLE_FILE", "CKPT"):
        read.take("output_model_format", "saving.checkpoint_format", "ckpt" if form == "CKPT" else "safetensors", "")
    elif form in ("KOHYA_LORA", "LEGACY_LORA"):
        read.take("output_model_format", "saving.checkpoint_format", "safetensors", "a LoRA is always as kohya's are")
    if read.is_given("output_dtype"):
        is_half = read.theirs["output_dtype"] != "FLOAT_32"
        read.take(
            "output_dtype", "saving.half_model", is_half, "" if "16" in str(read.theirs["output_dtype"]) else None
        )
    if read.is_given("rolling_backup"):
        read.take("rolling_backup_count", "intervals.states_kept", read.number("rolling_backup_count", 3), "")
    _samples(read, disk)


def _how_often(read: Reading, key: str, ours: str) -> None:
    if key not in read.theirs and f"{key}_unit" not in read.theirs:
        return
    unit = str(read.theirs.get(f"{key}_unit") or {"sample_after": "MINUTE", "backup_after": "MINUTE"}.get(key, "NEVER"))
    told = key if key in read.theirs else f"{key}_unit"
    if unit == "EPOCH":
        read.take(told, ours, int(read.number(key)), "")
    elif unit == "STEP":
        steps = of_training.updates(read, read.number(key))
        read.take(told, f"{ours}_steps", steps, "batches there; updates of the weights here")
    elif unit == "NEVER" and key == "save_every":
        read.take(told, ours, 0, "only the last is kept")
    else:
        read.leave(told, f"{ours}: in epochs or steps, and there it is {unit}")
    if f"{key}_unit" in read.theirs and told == key:
        read.leave(f"{key}_unit", "it says what the number counts")


def _samples(read: Reading, disk: Disk) -> None:
    listed, place = read.theirs.get("samples"), "samples"
    if not isinstance(listed, list) and read.is_given("sample_definition_file_name"):
        place = "sample_definition_file_name"
        listed = disk.parsed(str(read.theirs[place]))
        if not isinstance(listed, list):
            read.leave(place, f"there is no such list here: {read.theirs[place]}; write previews.prompts")
    elif "sample_definition_file_name" in read.theirs:
        read.leave("sample_definition_file_name", "the samples are in this file")
    whole = listed if isinstance(listed, list) else []
    kept = [one for one in whole if isinstance(one, Mapping) and one.get("enabled") is not False]
    kept = [one for one in kept if str(one.get("prompt") or "").strip()]
    if kept:
        _prompts(read, place, kept)
    elif isinstance(listed, list):
        read.leave(place, "it holds no prompts")


def _prompts(read: Reading, place: str, kept: list[Mapping[str, Any]]) -> None:
    prompts = "; ".join(str(one["prompt"]).strip().replace(";", ",") for one in kept)
    read.into.take(f"{place}, prompt", "previews.prompts", prompts, "one list, with semicolons between")
    first = kept[0]
    for key, ours in _OF_A_SAMPLE.items():
        if not nothing(first.get(key)) and not (key == "seed" and first.get("random_seed") is True):
            read.into.take(
                f"{place}, {key}", ours, fitting(ours, first[key]), "one for all prompts; this is the first's"
            )
    name = str(first.get("noise_scheduler") or "")
    if name in SAMPLERS:
        read.into.take(f"{place}, noise_scheduler", "previews.scheduler", SAMPLERS[name], "one for all prompts")
    elif name:
        read.into.leave(
            f"{place}, noise_scheduler", name, "there is no such sampler here; previews.scheduler has others"
        )
    known = {*_OF_A_SAMPLE, "enabled", "prompt", "noise_scheduler", "frames", "length"}
    for key in sorted(first.keys() - known):
        if not nothing(first[key]):
            read.into.leave(f"{place}, {key}", exact(first[key]), "there is no such choice for previews here")
