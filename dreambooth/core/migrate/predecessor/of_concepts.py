"""Concepts of the predecessor: folders, prompts, class pictures and what previews show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, isfinite
from typing import Any

from dreambooth.core.captions import FILEWORDS, NO_CAPTION
from dreambooth.core.migrate.control import UNKNOWN
from dreambooth.core.migrate.predecessor import controls
from dreambooth.core.migrate.report import Look, Migration, number

SAME = {
    "instance_data_dir": "instance_data_dir",
    "instance_prompt": "instance_prompt",
    "instance_token": "instance_token",
    "class_prompt": "class_prompt",
    "class_token": "class_token",
    "class_data_dir": "class_data_dir",
    "num_class_images_per": "num_class_images_per",
    "class_negative_prompt": "class_negative_prompt",
    "class_guidance_scale": "class_guidance_scale",
    "class_infer_steps": "class_infer_steps",
}
SAMPLES = {
    "save_sample_negative_prompt": "previews.negative_prompt",
    "n_save_sample": "previews.count",
    "save_guidance_scale": "previews.guidance_scale",
    "save_infer_steps": "previews.steps",
}
_NEGATIVE = ("class_negative_prompt", "save_sample_negative_prompt")
_TAKEN_TOGETHER = {*SAMPLES, "save_sample_prompt", "sample_seed", "num_class_images"}
_FOR_ITSELF = {"is_valid"}


def take(theirs: Sequence[Any], look: Look, into: Migration) -> None:
    kept = [one for one in theirs if isinstance(one, dict) and str(one.get("instance_data_dir") or "").strip()]
    if len(kept) < len(theirs):
        into.leave("concepts_list", len(theirs) - len(kept), "so many concepts name no folder of pictures")
    for row, one in enumerate(kept):
        for key, value in one.items():
            _one(row, key, value, into)
        _class_pictures(row, one, look, into)
    _samples(kept, into)


def _one(row: int, key: str, value: Any, into: Migration) -> None:
    theirs = f"concept {row}: {key}"
    if value in ("", None, []) or key in _FOR_ITSELF:
        return
    if key in _NEGATIVE and FILEWORDS in str(value):
        into.leave(theirs, value, NO_CAPTION.removesuffix("."))
    elif key in SAME:
        into.take(theirs, f"concepts.{row}.{SAME[key]}", value)
    elif key not in _TAKEN_TOGETHER and value:
        into.leave(theirs, value, controls.BY_KEY[key].reason if key in controls.BY_KEY else UNKNOWN)


def _samples(kept: Sequence[Mapping[str, Any]], into: Migration) -> None:
    """What previews show, which is one for all concepts here."""
    prompts = [prompt for one in kept if (prompt := str(one.get("save_sample_prompt") or "").strip())]
    if prompts:
        why = "the caption of each concept's first picture" if any(FILEWORDS in one for one in prompts) else ""
        into.take("save_sample_prompt", "previews.prompts", "; ".join(dict.fromkeys(prompts)), why)
    for key, ours in SAMPLES.items():
        values = [one[key] for one in kept if one.get(key) not in ("", None) and FILEWORDS not in str(one[key])]
        if values:
            why = "one for all concepts here; this is the first's" if len(set(map(str, values))) > 1 else ""
            into.take(key, ours, values[0], why)
    seeds = [one["sample_seed"] for one in kept if "sample_seed" in one]
    set_to = [seed for seed in seeds if number(seed, -1) >= 0]
    if set_to:
        into.take("sample_seed", "previews.seed", set_to[0])
    elif seeds:
        into.leave("sample_seed", seeds[0], controls.BY_KEY["sample_seed"].reason)


def _class_pictures(row: int, one: Mapping[str, Any], look: Look, into: Migration) -> None:
    """Older lists name a class folder and say elsewhere, or in all, how many pictures it should hold."""
    if "num_class_images_per" in one:
        return
    total, mine = number(one.get("num_class_images")), look(str(one["instance_data_dir"])).pictures
    ours = f"concepts.{row}.num_class_images_per"
    if mine and isfinite(total) and total:
        why = f"{total:g} in all for {mine} pictures"
        into.take(f"concept {row}: num_class_images", ours, ceil(total / mine), why)
    elif one.get("class_data_dir") and look(str(one["class_data_dir"])).pictures:
        why = "its class folder holds pictures, and the file does not say how many to make"
        into.take(f"concept {row}: class_data_dir", f"concepts.{row}.class_mode", "folder", why)
    elif one.get("class_data_dir"):
        why = f"its class folder is empty, and the file does not say how many pictures to make; set {ours}"
        into.leave(f"concept {row}: num_class_images", None, why)
