"""The arguments of a command that starts one of diffusers' DreamBooth scripts, or of ShivamShrirao's fork of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import ceil
from typing import Any

from dreambooth.core.migrate import rates
from dreambooth.core.migrate.command import Command
from dreambooth.core.migrate.diffusers_scripts.controls import BY_KEY
from dreambooth.core.migrate.disk import Disk
from dreambooth.core.migrate.predecessor import of_concepts
from dreambooth.core.migrate.reading import Reading
from dreambooth.core.migrate.report import Migration, side
from dreambooth.core.migrate.sd_scripts.of_training import SCHEDULES

_FULL, _LORA = "train_dreambooth", ("train_dreambooth_lora", "train_dreambooth_lora_sdxl")
SCRIPTS = (_FULL, *_LORA)
SAME = {
    "instance_data_dir": "concepts.0.instance_data_dir",
    "instance_prompt": "concepts.0.instance_prompt",
    "class_data_dir": "concepts.0.class_data_dir",
    "class_prompt": "concepts.0.class_prompt",
    "repeats": "concepts.0.repeats",
    "train_batch_size": "batching.train_batch_size",
    "sample_batch_size": "batching.class_batch_size",
    "gradient_accumulation_steps": "batching.gradient_accumulation_steps",
    "gradient_checkpointing": "batching.gradient_checkpointing",
    "max_train_steps": "intervals.max_train_steps",
    "checkpointing_steps": "intervals.save_state_every_steps",
    "checkpoints_total_limit": "intervals.states_kept",
    "save_interval": "intervals.save_model_every_steps",
    "lora_dropout": "lora.dropout",
    "seed": "general.seed",
    "validation_prompt": "previews.prompts",
    "save_sample_prompt": "previews.prompts",
    "num_validation_images": "previews.count",
    "n_save_sample": "previews.count",
    "save_sample_negative_prompt": "previews.negative_prompt",
    "save_guidance_scale": "previews.guidance_scale",
    "save_infer_steps": "previews.steps",
}
_UNSAID: dict[str, Any] = {  # what the scripts take for what is not said, where that is not what is taken here
    "train_batch_size": 4,
    "sample_batch_size": 4,
    "resolution": 512,
    "num_train_epochs": 1,
    "lr_scheduler": "constant",
    "prior_loss_weight": 1.0,
    "num_class_images": 100,
    "mixed_precision": "no",
    "max_grad_norm": 1.0,
    "adam_weight_decay": 1e-2,
}
_RATES = {_FULL: 5e-6, "train_dreambooth_lora": 5e-4, "train_dreambooth_lora_sdxl": 1e-4}
_RANK = 4
_OFFSET = 0.1


def command_line(theirs: Command, disk: Disk) -> Migration:
    """The settings of a command that starts one of SCRIPTS."""
    own = {"rank": _RANK} if theirs.script in _LORA else {}
    values = {"learning_rate": _RATES[theirs.script], **_UNSAID, **own, **theirs.arguments}
    read = Reading(values, BY_KEY, Migration())
    is_lora = theirs.script in _LORA
    read.into.settings.update({"general.method": "lora" if is_lora else "full", "pictures.buckets": False})
    side("resolution", values["resolution"], read.into)
    read.same(SAME)
    _concepts(read, disk)
    _pictures(read, disk)
    _length(read, disk)
    _rates(read, is_lora=is_lora)
    _objective(read)
    if is_lora:
        for ours in ("lora.rank", "lora.alpha"):
            read.take("rank", ours, why="")
        read.take("rank", "lora.layers", "attention", "the attention layers alone, as there")
    _say_what_is_unsaid(read, theirs.arguments)
    read.rest(set(), {"hub_token"}, {"lr_num_cycles", "lr_power"})
    theirs.report_unread(read.into)
    return read.into


def _concepts(read: Reading, disk: Disk) -> None:
    """The list that the fork reads in place of folder and prompts; with as many class pictures for each concept."""
    name = str(read.theirs.get("concepts_list") or "")
    listed = disk.parsed(name) if name else None
    if not isinstance(listed, list):
        return
    total = read.theirs["num_class_images"] if read.is_given("with_prior_preservation") else 0
    both = [{"num_class_images": total, **one} if isinstance(one, Mapping) else one for one in listed]
    of_concepts.take(both, disk.look, read.into)
    read.leave("concepts_list", "its concepts are taken")
    for key in ("with_prior_preservation", "num_class_images"):
        if read.is_given(key):
            read.leave(key, "each concept has a number of its own")


def _pictures(read: Reading, disk: Disk) -> None:
    read.take("center_crop", "pictures.crop", "centre" if read.is_given("center_crop") else "random", "")
    read.take("random_flip", "pictures.hflip", read.is_given("random_flip"), "")
    key, mine = "concepts.0.num_class_images_per", _count(read, "instance_data_dir", disk)
    if read.is_given("instance_data_dir") and not read.is_given("with_prior_preservation"):
        read.take("with_prior_preservation", key, 0, "off there unless it is asked for")
    elif mine:
        total = read.number("num_class_images")
        read.take("num_class_images", key, ceil(total / mine), f"{total:g} in all for {mine} pictures")
    read.take("prior_loss_weight", "tuning.prior_loss_weight", why="")


def _count(read: Reading, key: str, disk: Disk) -> int:
    folder = str(read.theirs.get(key) or "").strip()
    return disk.look(folder).pictures if folder else 0


def _length(read: Reading, disk: Disk) -> None:
    """Steps go before epochs there; with class pictures an epoch sees as many pictures as there are of the class."""
    if read.number("max_train_steps"):
        if "num_train_epochs" in read.theirs:
            read.leave("num_train_epochs", "max_train_steps goes before it there")
        return
    epochs, seen = read.number("num_train_epochs"), _count(read, "instance_data_dir", disk)
    if not read.is_given("with_prior_preservation"):
        read.take("num_train_epochs", "intervals.num_train_epochs", why="")
        read.into.settings["intervals.max_train_steps"] = 0
    elif seen:
        a_step = max(1.0, read.number("train_batch_size", 1)) * max(1.0, read.number("gradient_accumulation_steps", 1))
        steps = ceil(max(seen, read.number("num_class_images")) / a_step * epochs)
        read.take("num_train_epochs", "intervals.max_train_steps", steps)


def _rates(read: Reading, *, is_lora: bool) -> None:
    if read.is_given("use_8bit_adam"):
        read.take("use_8bit_adam", "optimizer.name", "adamw_8bit", "")
    elif str(read.theirs.get("optimizer") or "adamw").lower() == "prodigy":
        read.take("optimizer", "optimizer.name", "prodigy", "")
    for key, ours in (("adam_beta1", "optimizer.beta1"), ("adam_beta2", "optimizer.beta2"),
                      ("adam_epsilon", "optimizer.epsilon")):  # fmt: skip
        if read.is_given(key):
            rates.take_part_of_optimizer(read, key, ours, read.theirs[key], "")
    for key, some in (("adam_weight_decay", rates.WEIGHT_DECAY), ("max_grad_norm", rates.GRADIENT_NORM)):
        for ours in some:
            read.take(key, ours, why="")
    if read.is_given("adam_weight_decay_text_encoder"):
        read.take("adam_weight_decay_text_encoder", rates.WEIGHT_DECAY[1], why="")
    factor, prefix = 1.0, "lora_" if is_lora else ""
    if read.is_given("scale_lr"):
        factor = max(1.0, read.number("train_batch_size", 1)) * max(1.0, read.number("gradient_accumulation_steps", 1))
        read.take("scale_lr", f"learning.{prefix}learning_rate", read.number("learning_rate") * factor)
    rate, why = read.number("learning_rate") * factor, "" if factor == 1 else f"scale_lr: {factor:g} times as much"
    rates.take_rate(read, "learning_rate", f"learning.{prefix}learning_rate", rate, why)
    text = f"learning.{prefix}text_encoder_learning_rate"
    if read.is_given("text_encoder_lr"):
        rates.take_rate(read, "text_encoder_lr", text, read.theirs["text_encoder_lr"], "")
    else:
        rates.take_rate(read, "learning_rate", text, rate, why)
    read.take(
        "train_text_encoder", "tuning.text_encoder_ratio", 1.0 if read.is_given("train_text_encoder") else 0.0, ""
    )
    rates.take_schedule(read, "lr_scheduler", SCHEDULES)
    read.into.settings["learning.warmup"] = 0.0
    if steps := read.number("lr_warmup_steps"):
        if read.theirs["lr_scheduler"] == "constant":
            read.leave("lr_warmup_steps", "a constant rate has no warmup there; learning.warmup gives it one")
        else:
            rates.warmup(read, "lr_warmup_steps", steps, float(read.into.settings.get("intervals.max_train_steps", 0)))


def _objective(read: Reading) -> None:
    read.take("mixed_precision", "tuning.mixed_precision", why="")
    if read.is_given("offset_noise"):
        value = _OFFSET if read.theirs["offset_noise"] is True else read.theirs["offset_noise"]
        read.take("offset_noise", "objective.offset_noise", value, "")
    if read.is_given("snr_gamma"):
        read.take("snr_gamma", "objective.min_snr_gamma", why="")
        read.take("snr_gamma", "objective.weighting", "min_snr", "")
    if read.is_given("use_dora"):
        read.take("use_dora", "lora.kind", "dora", "")


def _say_what_is_unsaid(read: Reading, said: Mapping[str, Any]) -> None:
    """Marks what is taken though the command does not say it, and reports nothing else of that."""
    why = "not said: what the script takes for it"
    read.into.lines = [
        replace(line, fate="changed", why=why) if line.theirs not in said and line.ours and not line.why else line
        for line in read.into.lines
        if line.theirs in said or line.ours
    ]
    read.theirs = {key: value for key, value in read.theirs.items() if key in said}
