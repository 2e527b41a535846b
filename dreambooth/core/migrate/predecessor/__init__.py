"""The predecessor's db_config.json, of its last revision, of the one its guides describe and of those before, and
concepts lists. Every key of a file is told of: taken, changed, or left out with the reason (`controls.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dreambooth.core.migrate.control import UNKNOWN
from dreambooth.core.migrate.predecessor import controls, of_concepts, of_rates, of_results, of_training
from dreambooth.core.migrate.report import Look, Migration, side

SAME = {
    "num_train_epochs": "intervals.num_train_epochs",
    "train_batch_size": "batching.train_batch_size",
    "gradient_accumulation_steps": "batching.gradient_accumulation_steps",
    "gradient_checkpointing": "batching.gradient_checkpointing",
    "sample_batch_size": "batching.class_batch_size",
    "stop_text_encoder": "tuning.text_encoder_ratio",
    "pad_tokens": "tuning.pad_tokens",
    "mixed_precision": "tuning.mixed_precision",
    "hflip": "pictures.hflip",
    "use_ema": "tuning.use_ema",
    "deterministic": "tuning.deterministic",
    "adam_weight_decay": "optimizer.weight_decay",
    "adamw_weight_decay": "optimizer.weight_decay",
    "weight_decay": "optimizer.weight_decay",
    "tenc_weight_decay": "optimizer.text_encoder_weight_decay",
    "adam_beta1": "optimizer.beta1",
    "adam_beta2": "optimizer.beta2",
    "adam_epsilon": "optimizer.epsilon",
    "max_grad_norm": "optimizer.max_grad_norm",
    "prior_loss_weight": "tuning.prior_loss_weight",
    "offset_noise": "objective.offset_noise",
    "lora_unet_rank": "lora.rank",
    "shuffle_tags": "captions.shuffle_tags",
    "custom_model_name": "saving.custom_model_name",
    "use_subdir": "saving.use_subdirectory",
    "half_model": "saving.half_model",
    "sanity_seed": "previews.seed",
}
_FOR_ITSELF = {
    "epoch", "has_ema", "initial_revision", "lifetime_revision", "loaded", "model_dir", "model_name", "model_path",
    "pretrained_model_name_or_path", "revision", "src", "working_dir",
}  # fmt: skip
# What is on even where it is off: the one is always so here, and the other was chosen.
_ALWAYS_SO = {"cache_latents", "gradient_set_to_none", "split_loss"}
# What has a meaning only with another setting, or with another schedule or optimizer.
_PART_OF = {
    "adaptation_beta1": "", "adaptation_beta2": "", "adaptation_d0": "", "adaptation_eps": "",
    "concepts_path": "use_concepts", "dream_detail_preservation": "use_dream", "ema_predict": "use_ema",
    "epoch_pause_frequency": "", "epoch_pause_time": "", "infer_ema": "use_ema",
    "learning_rate_min": "", "lora_model_name": "use_lora", "lora_txt_rank": "use_lora",
    "lora_txt_weight": "use_lora", "lora_weight": "use_lora", "lr_cycles": "", "lr_factor": "", "lr_power": "",
    "lr_scale_pos": "", "lr_warmup_steps": "", "prior_loss_target": "",
    "prior_loss_weight_min": "", "save_ema": "use_ema", "save_lora_after": "use_lora",
    "save_lora_cancel": "use_lora", "save_lora_during": "use_lora", "save_lora_for_extra_net": "use_lora",
    "use_lora_extended": "use_lora",
}  # fmt: skip
_NOTHING: tuple[Any, ...] = (None, False, 0, "", [], "no", "default", "DDPM")


def config(theirs: Mapping[str, Any], look: Look) -> Migration:
    """The settings of a db_config.json; `look` says what lies in a folder."""
    into = Migration()
    listed = theirs.get("concepts_list") or []
    if not isinstance(listed, list):
        listed = []
    of_concepts.take(listed, look, into)
    into.take("use_lora", "general.method", "lora" if theirs.get("use_lora") else "full")
    if "resolution" in theirs:
        side("resolution", theirs["resolution"], into)
    for key, ours in SAME.items():
        if theirs.get(key) is not None:
            into.take(key, ours, theirs[key])
    of_rates.take(theirs, listed, look, into)
    of_training.take(theirs, into)
    of_results.take(theirs, into)
    _rest(theirs, into)
    return into


def concepts(theirs: Sequence[Any], look: Look) -> Migration:
    """The concepts of a concepts_list.json."""
    into = Migration()
    of_concepts.take(theirs, look, into)
    return into


def _rest(theirs: Mapping[str, Any], into: Migration) -> None:
    """What has no counterpart; and in one line each what says nothing, and what is no setting."""
    off: list[str] = []
    for key in sorted(theirs.keys() - into.reported_keys() - _FOR_ITSELF - {"concepts_list"}):
        value = theirs[key]
        is_part = key in _PART_OF and not (_PART_OF[key] and theirs.get(_PART_OF[key], True))
        if is_part or (value in _NOTHING and key not in _ALWAYS_SO):
            off.append(key)
        else:
            into.leave(key, value, controls.BY_KEY[key].reason if key in controls.BY_KEY else UNKNOWN)
    if off:
        into.leave(", ".join(off), None, "empty or off, or only for something that is off")
    if own := sorted(theirs.keys() & _FOR_ITSELF):
        into.leave(", ".join(own), None, "that extension's own notes, and no settings")
