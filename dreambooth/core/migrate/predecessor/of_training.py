"""What the predecessor trained, how its LoRA was made, and what was minimised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dreambooth.core.migrate.predecessor import controls
from dreambooth.core.migrate.report import Migration, number

_LONGEST_PROMPT = 225  # tokens


def take(theirs: Mapping[str, Any], into: Migration) -> None:
    if theirs.get("use_lora"):
        _lora(theirs, into)
    _reading(theirs, into)
    _what_is_trained(theirs, into)
    _objective(theirs, into)
    _rests(theirs, into)
    _imagic(theirs, into)


def _lora(theirs: Mapping[str, Any], into: Migration) -> None:
    rank = theirs.get("lora_unet_rank")
    if "lora_weight" in theirs:
        into.take("lora_weight", "lora.alpha", number(rank, 4), controls.BY_KEY["lora_weight"].why)
    if theirs.get("lora_txt_rank") == rank and rank is not None:
        into.take("lora_txt_rank", "lora.rank", rank)
    elif "lora_txt_rank" in theirs:
        into.leave("lora_txt_rank", theirs["lora_txt_rank"], controls.BY_KEY["lora_txt_rank"].reason)
    if theirs.get("use_lora_extended"):
        into.take("use_lora_extended", "lora.layers", "convolutions")


def _reading(theirs: Mapping[str, Any], into: Migration) -> None:
    """How prompts are read."""
    length = theirs.get("max_token_length")
    if length is not None and number(length) > _LONGEST_PROMPT:
        why = controls.BY_KEY["max_token_length"].why
        into.take("max_token_length", "tuning.max_token_length", _LONGEST_PROMPT, why)
    elif length is not None:
        into.take("max_token_length", "tuning.max_token_length", length)
    if str(theirs.get("model_type") or "v1x") == "v1x" and "clip_skip" in theirs:
        into.take("clip_skip", "tuning.clip_skip", theirs["clip_skip"])
    elif "clip_skip" in theirs:
        into.leave("clip_skip", theirs["clip_skip"], "SD 2 and SDXL are always read at one and the same block")


def _what_is_trained(theirs: Mapping[str, Any], into: Migration) -> None:
    if "train_text_encoder" in theirs and "stop_text_encoder" not in theirs:
        share = 1.0 if theirs["train_text_encoder"] else 0.0
        into.take("train_text_encoder", "tuning.text_encoder_ratio", share)
    if theirs.get("train_unet") is not None:
        into.take("train_unet", "tuning.train_unet", theirs["train_unet"])
    if theirs.get("train_unet") is False and number(theirs.get("stop_text_encoder")) < 1:
        why = "without the UNet the text encoder is trained for the whole run"
        into.take("stop_text_encoder", "tuning.text_encoder_ratio", 1.0, why)
    if theirs.get("freeze_clip_normalization"):
        why = controls.BY_KEY["freeze_clip_normalization"].why
        into.take("freeze_clip_normalization", "tuning.freeze_clip_normalization", True, why)
    if number(theirs.get("tenc_grad_clip_norm")):
        why = "nothing read it there"
        into.take("tenc_grad_clip_norm", "optimizer.text_encoder_max_grad_norm", theirs["tenc_grad_clip_norm"], why)
    elif "tenc_grad_clip_norm" in theirs:
        reason = controls.BY_KEY["tenc_grad_clip_norm"].reason
        into.leave("tenc_grad_clip_norm", theirs["tenc_grad_clip_norm"], reason)
    if "center_crop" in theirs:
        into.take("center_crop", "pictures.crop", "centre" if theirs["center_crop"] else "random")
    if number(theirs.get("max_train_steps")):
        into.take("max_train_steps", "intervals.max_train_steps", theirs["max_train_steps"])


def _objective(theirs: Mapping[str, Any], into: Migration) -> None:
    least = number(theirs.get("prior_loss_weight_min"), 0.1)
    if theirs.get("prior_loss_scale") and least > number(theirs.get("prior_loss_weight"), 0.75):
        into.leave("prior_loss_scale", True, "its minimum is above its weight")
    elif theirs.get("prior_loss_scale"):
        into.take("prior_loss_scale", "objective.prior_loss_scale", True)
        into.take("prior_loss_target", "objective.prior_loss_target", number(theirs.get("prior_loss_target"), 100))
        into.take("prior_loss_weight_min", "objective.prior_loss_weight_min", least)
    if number(theirs.get("min_snr_gamma")):
        why = controls.BY_KEY["min_snr_gamma"].why
        into.take("min_snr_gamma", "objective.min_snr_gamma", theirs["min_snr_gamma"], why)
        if "objective.min_snr_gamma" in into.settings:
            into.take("min_snr_gamma", "objective.weighting", "min_snr", "this is what gamma belongs to")


def _rests(theirs: Mapping[str, Any], into: Migration) -> None:
    often, seconds = number(theirs.get("epoch_pause_frequency")), number(theirs.get("epoch_pause_time"))
    if often and seconds:
        into.take("epoch_pause_frequency", "intervals.epoch_pause_frequency", often)
        into.take("epoch_pause_time", "intervals.epoch_pause_time", seconds)


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
