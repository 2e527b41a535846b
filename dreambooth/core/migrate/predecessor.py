"""The predecessor's db_config.json, of its last revision and of the one its guides describe, and concepts lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, isfinite
from typing import Any

from dreambooth.core.migrate.report import Look, Migration, number, side

_SAME = {
    "num_train_epochs": "intervals.num_train_epochs",
    "save_preview_every": "intervals.save_preview_every",
    "train_batch_size": "batching.train_batch_size",
    "gradient_accumulation_steps": "batching.gradient_accumulation_steps",
    "gradient_checkpointing": "batching.gradient_checkpointing",
    "sample_batch_size": "batching.class_batch_size",
    "learning_rate": "learning.learning_rate",
    "txt_learning_rate": "learning.text_encoder_learning_rate",
    "lora_learning_rate": "learning.lora_learning_rate",
    "lora_txt_learning_rate": "learning.lora_text_encoder_learning_rate",
    "stop_text_encoder": "tuning.text_encoder_ratio",
    "max_token_length": "tuning.max_token_length",
    "pad_tokens": "tuning.pad_tokens",
    "mixed_precision": "tuning.mixed_precision",
    "hflip": "pictures.hflip",
    "use_ema": "tuning.use_ema",
    "deterministic": "tuning.deterministic",
    "weight_decay": "optimizer.weight_decay",
    "adamw_weight_decay": "optimizer.weight_decay",
    "tenc_weight_decay": "optimizer.text_encoder_weight_decay",
    "tenc_grad_clip_norm": "optimizer.text_encoder_max_grad_norm",
    "prior_loss_weight": "tuning.prior_loss_weight",
    "offset_noise": "objective.offset_noise",
    "lora_unet_rank": "lora.rank",
    "shuffle_tags": "captions.shuffle_tags",
    "custom_model_name": "saving.custom_model_name",
    "use_subdir": "saving.use_subdirectory",
    "half_model": "saving.half_model",
    "sanity_seed": "previews.seed",
}
_CONCEPT = {
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
_SAMPLES = {
    "save_sample_negative_prompt": "previews.negative_prompt",
    "n_save_sample": "previews.count",
    "save_guidance_scale": "previews.guidance_scale",
    "save_infer_steps": "previews.steps",
}
_ALWAYS = {
    "attention": "PyTorch's own is the quickest on nearly every device; memory.attention has others",
    "cache_latents": "pictures are always encoded once",
    "gradient_set_to_none": "always so",
    "save_safetensors": "always so",
    "split_loss": "your pictures and the class's always count apart",
}
_BOOKKEEPING = {
    "concepts_list", "epoch", "graph_smoothing", "has_ema", "initial_revision", "input_pertubation",
    "lifetime_revision", "model_dir", "model_name", "model_path", "model_type", "pretrained_model_name_or_path",
    "revision", "sanity_prompt", "scheduler", "shared_diffusers_path", "clip_skip", "snapshot", "src", "train_unfrozen",
    "use_lora", "use_shared_src", "v2", "lora_weight", "lora_txt_weight", "resolution", "lr_scheduler",
    "lr_warmup_steps", "lr_cycles", "lr_factor", "lr_power", "lr_scale_pos", "learning_rate_min",
    "save_embedding_every", "save_ckpt_after", "save_ckpt_cancel", "save_ckpt_during", "save_lora_after",
    "save_lora_cancel", "save_lora_during", "save_state_after", "save_state_cancel", "save_state_during",
    "save_lora_for_extra_net", "ema_predict", "tomesd", "prior_loss_scale", "prior_loss_target",
    "prior_loss_weight_min", "freeze_clip_normalization", "train_unet",
    "full_mixed_precision", "dream_detail_preservation", "save_ema", "adaptation_beta1",
    "adaptation_beta2", "adaptation_d0", "adaptation_eps", "disable_logging", "optimizer", "epoch_pause_frequency",
    "epoch_pause_time", "train_imagic",
}  # fmt: skip
_SCHEDULERS = {  # ours, and why it is not the same
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
_OPTIMIZERS = {
    "Torch AdamW": "adamw",
    "8bit AdamW": "adamw_8bit",
    "8Bit Adam": "adamw_8bit",
    "Paged 8bit AdamW": "paged_adamw_8bit",
    "Lion": "lion",
    "8bit Lion": "lion_8bit",
    "Paged 8bit Lion": "paged_lion_8bit",
    "Adafactor": "adafactor",
    "Prodigy": "prodigy",
}
_WARMED_UP = ("constant_with_warmup", "linear_with_warmup", "cosine", "cosine_with_restarts", "polynomial", "rex")
_NOTHING: tuple[Any, ...] = (None, False, 0, "", [], "no", "default", "DDPM")


def config(theirs: Mapping[str, Any], look: Look) -> Migration:
    """The settings of a db_config.json; `look` says what lies in a folder."""
    into = Migration()
    listed = theirs.get("concepts_list") or []
    if isinstance(listed, list):
        _concepts(listed, look, into)
    into.take("use_lora", "general.method", "lora" if theirs.get("use_lora") else "full")
    if "resolution" in theirs:
        side("resolution", theirs["resolution"], into)
    for key, ours in _SAME.items():
        if key in theirs and theirs[key] is not None:
            into.take(key, ours, theirs[key])
    if str(theirs.get("model_type") or "v1x") == "v1x" and "clip_skip" in theirs:
        into.take("clip_skip", "tuning.clip_skip", theirs["clip_skip"])
    elif "clip_skip" in theirs:
        into.leave("clip_skip", theirs["clip_skip"], "SD 2 and SDXL are always read at one and the same block")
    if "learning_rate" in theirs and "txt_learning_rate" not in theirs:
        why = "one rate was for both parts there"
        into.take("learning_rate", "learning.text_encoder_learning_rate", theirs["learning_rate"], why)
    if theirs.get("use_lora"):
        _lora(theirs, into)
    _rates(theirs, listed, look, into)
    _training(theirs, into)
    _imagic(theirs, into)
    _optimizer(theirs, into)
    _saving(theirs, into)
    if str(theirs.get("sanity_prompt") or "").strip():
        prompts = [into.settings.get("previews.prompts", ""), str(theirs["sanity_prompt"]).strip()]
        into.take("sanity_prompt", "previews.prompts", "; ".join(filter(None, prompts)))
    _rest(theirs, into)
    return into


def concepts(theirs: Sequence[Any], look: Look) -> Migration:
    """The concepts of a concepts_list.json."""
    into = Migration()
    _concepts(theirs, look, into)
    return into


def _concepts(theirs: Sequence[Any], look: Look, into: Migration) -> None:
    kept = [one for one in theirs if isinstance(one, dict) and str(one.get("instance_data_dir") or "").strip()]
    if len(kept) < len(theirs):
        into.leave("concepts_list", len(theirs) - len(kept), "so many concepts name no folder of pictures")
    prompts: list[str] = []
    for row, one in enumerate(kept):
        for key, ours in _CONCEPT.items():
            if key in one and one[key] not in ("", None):
                into.take(f"concept {row}: {key}", f"concepts.{row}.{ours}", one[key])
        _class_pictures(row, one, look, into)
        sample = str(one.get("save_sample_prompt") or "").strip()
        if "[filewords]" in sample:
            into.leave(f"concept {row}: save_sample_prompt", sample, "previews show prompts, not your captions")
        elif sample:
            prompts.append(sample)
        if one.get("save_sample_template"):
            why = "write its lines into previews.prompts, with semicolons between"
            into.leave(f"concept {row}: save_sample_template", one["save_sample_template"], why)
    if prompts:
        into.take("save_sample_prompt", "previews.prompts", "; ".join(dict.fromkeys(prompts)))
    for key, ours in _SAMPLES.items():
        values = [one[key] for one in kept if one.get(key) not in ("", None)]
        if values:
            why = "one for all concepts here; this is the first's" if len(set(map(str, values))) > 1 else ""
            into.take(key, ours, values[0], why)
    seeds = [one["sample_seed"] for one in kept if number(one.get("sample_seed"), -1) >= 0]
    if seeds:
        into.take("sample_seed", "previews.seed", seeds[0])


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


def _lora(theirs: Mapping[str, Any], into: Migration) -> None:
    why = "it trained at full strength, which is alpha equal to rank"
    into.take("lora_weight", "lora.alpha", number(theirs.get("lora_unet_rank"), 4), why)
    if theirs.get("lora_txt_rank", theirs.get("lora_unet_rank")) != theirs.get("lora_unet_rank"):
        into.leave("lora_txt_rank", theirs["lora_txt_rank"], "both parts have lora.rank here")


def _training(theirs: Mapping[str, Any], into: Migration) -> None:
    """What is trained and what is minimised."""
    if theirs.get("train_unet") is False:
        into.take("train_unet", "tuning.train_unet", False)
        if number(theirs.get("stop_text_encoder")) < 1:
            why = "without the UNet the text encoder is trained for the whole run"
            into.take("stop_text_encoder", "tuning.text_encoder_ratio", 1.0, why)
    if theirs.get("freeze_clip_normalization"):
        into.take("freeze_clip_normalization", "tuning.freeze_clip_normalization", True, "it froze nothing there")
    least = number(theirs.get("prior_loss_weight_min"), 0.1)
    if theirs.get("prior_loss_scale") and least > number(theirs.get("prior_loss_weight"), 0.75):
        into.leave("prior_loss_scale", True, "its minimum is above its weight")
    elif theirs.get("prior_loss_scale"):
        into.take("prior_loss_scale", "objective.prior_loss_scale", True)
        into.take("prior_loss_target", "objective.prior_loss_target", number(theirs.get("prior_loss_target"), 100))
        into.take("prior_loss_weight_min", "objective.prior_loss_weight_min", least)


def _imagic(theirs: Mapping[str, Any], into: Migration) -> None:
    """It edits one picture; what it trained beside that, or left out, does not go with it here."""
    if theirs.get("train_imagic") is not True:
        return
    into.take("train_imagic", "imagic.enabled", True)
    into.take("stop_text_encoder", "tuning.text_encoder_ratio", 0.0, "Imagic fits the text itself")
    if theirs.get("shuffle_tags"):
        into.take("shuffle_tags", "captions.shuffle_tags", False, "Imagic reads its picture with one text")
    rows = {key.split(".")[1] for key in into.settings if key.startswith("concepts.")}
    for row in sorted(rows):
        why = "Imagic has no pictures of a class"
        into.take(f"concept {row}: num_class_images_per", f"concepts.{row}.class_mode", "off", why)


def _rates(theirs: Mapping[str, Any], listed: Sequence[Any], look: Look, into: Migration) -> None:
    name = str(theirs.get("lr_scheduler") or "")
    if not name:
        return
    ours, why = _SCHEDULERS.get(name, ("cosine", "the nearest that there is here"))
    into.take("lr_scheduler", "learning.scheduler", ours, f"{name}: {why}" if why else "")
    _shape_of_rates(theirs, ours, into)
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


def _shape_of_rates(theirs: Mapping[str, Any], ours: str, into: Migration) -> None:
    """What belongs to one kind of schedule alone."""
    if ours == "cosine_with_restarts" and theirs.get("lr_cycles"):
        into.take("lr_cycles", "learning.cycles", max(1, number(theirs["lr_cycles"], 1)))
    if ours == "polynomial" and theirs.get("lr_power"):
        into.take("lr_power", "learning.power", number(theirs["lr_power"], 1))
    least, full = number(theirs.get("learning_rate_min")), number(theirs.get("learning_rate"))
    if str(theirs["lr_scheduler"]).startswith("cosine_annealing") and least and full:
        share = round(min(1.0, least / full), 4)
        into.take("learning_rate_min", "learning.minimum", share, f"{least:g} is this share of the learning rate")


def _optimizer(theirs: Mapping[str, Any], into: Migration) -> None:
    name = str(theirs.get("optimizer") or "")
    if name in _OPTIMIZERS:
        into.take("optimizer", "optimizer.name", _OPTIMIZERS[name])
        if name == "Prodigy":
            for rate in ("", "lora_", "text_encoder_", "lora_text_encoder_"):
                why = "Prodigy finds the rate itself; this is a factor"
                into.take("learning_rate", f"learning.{rate}learning_rate", 1.0, why)
    elif name:
        into.leave("optimizer", name, "there is no such optimizer here; AdamW is taken")
    often, seconds = number(theirs.get("epoch_pause_frequency")), number(theirs.get("epoch_pause_time"))
    if often and seconds:
        into.take("epoch_pause_frequency", "intervals.epoch_pause_frequency", often)
        into.take("epoch_pause_time", "intervals.epoch_pause_time", seconds)


def _saving(theirs: Mapping[str, Any], into: Migration) -> None:
    every = theirs.get("save_embedding_every")
    if every is None:
        return
    into.take("save_embedding_every", "intervals.save_state_every", every)
    during = theirs.get("save_lora_during" if theirs.get("use_lora") else "save_ckpt_during")
    if during:
        into.take("save_embedding_every", "intervals.save_model_every", every)
    else:
        into.take("save_ckpt_during, save_lora_during", "intervals.save_model_every", 0, "off: only the last is kept")


def _rest(theirs: Mapping[str, Any], into: Migration) -> None:
    """Everything that is on and has no counterpart, and what is always so here."""
    for key, value in theirs.items():
        if key in _SAME or key in _BOOKKEEPING or (value in _NOTHING and key not in _ALWAYS):
            continue
        if key == "concepts_path":
            into.leave(key, value, "import that file too")
        else:
            into.leave(key, value, _ALWAYS.get(key, "there is no such setting here"))
