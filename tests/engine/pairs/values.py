"""Which values of each setting are worth trying together: a few, other ones than the default among them.

A row is a choice for each key of `table()`: the settings, and a few keys that are none. `BASE` is what a row has that
chooses nothing: the settings' own defaults, but for those that would make a run of minutes or no run at all.
"""

from __future__ import annotations

from typing import Any

from dreambooth.core import schema
from dreambooth.core.settings import Settings

Row = dict[str, Any]

# What is no setting: the model that is taught, and whether there is a second concept.
FAMILY, SECOND = "family", "concepts.1"

# Folders and files that are made for each row, as {NAME}: see world.py.
SHAPES, ONE, OF_CLASS, START, START_WITH_TEXT = "{shapes}", "{one}", "{class}", "{lora}", "{loha with text}"
START_WORD = "{embedding}"

BASE: Row = {
    FAMILY: "sd1",
    SECOND: False,
    "concepts.0.instance_data_dir": SHAPES,
    "concepts.0.instance_prompt": "a photo of sks star",
    "concepts.0.class_prompt": "a photo of a star",
    "concepts.0.class_infer_steps": 1,
    "captions.variants": 3,
    "pictures.variants": 2,
    "intervals.num_train_epochs": 2,
    "intervals.max_train_steps": 6,
    "learning.learning_rate": 1e-3,
    "learning.text_encoder_learning_rate": 1e-3,
    "learning.lora_learning_rate": 1e-2,
    "learning.lora_text_encoder_learning_rate": 1e-2,
    "lora.rank": 2,
    "lora.alpha": 2.0,
    "imagic.embedding_steps": 3,
    "previews.steps": 1,
    "previews.count": 0,
}

# Of settings that are no choice, and of those that have more choices than are worth trying. The base's comes besides.
VALUES: dict[str, tuple[Any, ...]] = {
    FAMILY: ("sd2-v", "sdxl", "sdxl-v", "sd1-inpainting"),
    SECOND: (True,),
    "general.resolution": (128,),
    "general.seed": (7,),
    "concepts.0.instance_data_dir": (ONE,),
    "concepts.0.instance_prompt": ("[filewords], {red|blue}",),
    "concepts.0.class_prompt": ("[filewords]", ""),
    "concepts.0.instance_token": ("sks",),
    "concepts.0.class_token": ("star",),
    "concepts.0.repeats": (2,),
    "concepts.0.held_out": (1,),
    "concepts.0.class_data_dir": (OF_CLASS,),
    "concepts.0.num_class_images_per": (1,),
    "concepts.0.class_negative_prompt": ("grey",),
    "concepts.0.class_guidance_scale": (1.0,),
    "concepts.0.class_infer_steps": (2,),
    "concepts.0.loss_weight": (0.01, 3.0),
    "captions.keep_tags": (0, 2),
    "captions.keep_marker": ("|||",),
    "captions.tie": (";;;",),
    "captions.tag_dropout": (0.3, 1.0),
    "captions.tag_dropout_except": ("sks",),
    "captions.variants": (1,),
    "captions.dropout": (0.3, 1.0),
    "captions.dropout_every": (2,),
    "captions.prefix": ("(art:1.2), ",),
    "captions.suffix": (", on " + "very " * 80 + "white",),  # longer than one piece
    "pictures.bucket_min_side": (32, 128),
    "pictures.bucket_max_side": (128, 96),
    "pictures.variants": (3,),
    "pictures.crop_jitter": (0.2,),
    "pictures.rotation": (10.0,),
    "pictures.brightness": (0.3,),
    "pictures.colour": (0.5,),
    "intervals.num_train_epochs": (1,),
    "intervals.max_train_steps": (0, 7),
    "intervals.save_preview_every": (1,),
    "intervals.save_model_every": (0, 1),
    "intervals.save_state_every": (0, 1),
    "intervals.save_preview_every_steps": (3,),
    "intervals.save_model_every_steps": (4,),
    "intervals.save_state_every_steps": (2,),
    "intervals.validate_every": (1,),
    "intervals.results_kept": (1,),
    "intervals.validate_mirrored": (True,),
    "intervals.states_kept": (3,),
    "intervals.states_kept_every": (1,),
    "intervals.epoch_pause_frequency": (1,),
    "intervals.epoch_pause_time": (1,),
    "batching.train_batch_size": (2,),
    "batching.gradient_accumulation_steps": (2,),
    "batching.class_batch_size": (1, 2),
    "learning.learning_rate": (1e-5,),
    "learning.text_encoder_learning_rate": (0.0,),
    "learning.lora_learning_rate": (1e-4,),
    "learning.lora_text_encoder_learning_rate": (0.0,),
    "learning.text_encoder_2_ratio": (0.5,),
    "learning.embedding_learning_rate": (0.01,),
    "learning.lora_plus_ratio": (4.0,),
    "learning.warmup": (0.3,),
    "learning.minimum": (0.2,),
    "learning.cycles": (3,),
    "learning.power": (0.5,),
    "optimizer.weight_decay": (0.0, 0.2),
    "optimizer.text_encoder_weight_decay": (0.0,),
    "optimizer.max_grad_norm": (0.0, 0.1),
    "optimizer.text_encoder_max_grad_norm": (0.0,),
    "optimizer.beta1": (0.5,),
    "optimizer.beta2": (0.9,),
    "optimizer.epsilon": (1e-6,),
    "optimizer.d_coef": (0.5,),
    "tuning.text_encoder_ratio": (0.5, 1.0),
    "tuning.text_encoder_steps": (3,),
    "tuning.max_token_length": (150,),
    "tuning.clip_skip": (2,),
    "tuning.ema_decay": (0.5,),
    "tuning.prior_loss_weight": (0.0, 2.0),
    "tuning.nonfinite_steps": (1,),
    "objective.huber_delta": (1.0,),
    "objective.min_snr_gamma": (0.5,),
    "objective.prior_loss_target": (1,),
    "objective.prior_loss_weight_min": (0.0, 1.0),
    "objective.offset_noise": (0.1,),
    "objective.multires_noise_levels": (3,),
    "objective.multires_noise_discount": (1.0,),
    "objective.input_perturbation": (0.1,),
    "objective.timestep_min": (500, 999),
    "objective.timestep_max": (700, 0),
    "objective.logit_mean": (2.0,),
    "objective.logit_std": (0.1,),
    "objective.unmasked_weight": (0.0, 1.0),
    "memory.checkpointed_share": (0.5,),
    "lora.rank": (1, 5),
    "lora.alpha": (0.5,),
    "lora.conv_rank": (3,),
    "lora.conv_alpha": (1.0,),
    "lora.dropout": (0.3,),
    "lora.blocks": ("mid", "IN04-IN05, out"),
    "lora.lokr_factor": (4,),
    "lora.max_norm": (0.05,),
    "lora.start_file": (START, START_WITH_TEXT),
    "embedding.vectors": (1, 5),
    "embedding.initial_text": ("a red star",),
    "embedding.start_file": (START_WORD,),
    "embedding.ratio": (1.0,),
    "imagic.embedding_steps": (1,),
    "imagic.embedding_learning_rate": (0.1,),
    "previews.prompts": ("a star; a cat",),
    "previews.negative_prompt": ("grey",),
    "previews.count": (1,),
    "previews.seed": (1,),
    "previews.guidance_scale": (1.0,),
    "previews.steps": (2,),
    "previews.scheduler": ("dpm++_sde", "euler_a", "heun", "lms", "pndm", "sa", "unipc"),
    "previews.width": (72, 128),
    "previews.height": (64,),
    "saving.custom_model_name": ("mine",),
}

# Choices that only a card has.
ON_CARD: dict[str, tuple[Any, ...]] = {
    "optimizer.name": ("paged_adamw_8bit", "paged_lion_8bit"),
    "tuning.mixed_precision": ("fp16",),
    "tuning.cuda_graphs": (True,),
    "memory.attention": ("xformers",),
}

LEFT_OUT = {
    "batching.num_processes": "more processes learn the same as one; test_data_parallel.py has rows of its own",
    "tuning.trace_steps": "each row is run with it and without it",
    "intervals.patience": "a run that ends by itself is not there to be paused half way",
    "reporting.webhook_url": "it leads to the internet",
}


def table(*, on_card: bool = False) -> dict[str, list[Any]]:
    """Every key of a row with the values to try, its base's first."""
    found: dict[str, list[Any]] = {key: [BASE[key], *VALUES[key]] for key in (FAMILY, SECOND)}
    for leaf in schema.leaves(Settings, row="0"):
        if leaf.key in LEFT_OUT:
            continue
        choices = (False, True) if leaf.type is bool else leaf.choices
        values = (BASE.get(leaf.key, leaf.default), *VALUES.get(leaf.key, choices))
        only_there = () if on_card else ON_CARD.get(leaf.key, ())
        found[leaf.key] = [one for one in dict.fromkeys(values) if one not in only_there]
    return {key: values for key, values in found.items() if len(values) > 1}


def settings_of(row: Row) -> dict[str, Any]:
    """The row's settings as dotted keys."""
    flat = {key: value for key, value in row.items() if key not in (FAMILY, SECOND)}
    if row[SECOND]:
        flat |= {"concepts.1.instance_data_dir": ONE, "concepts.1.instance_prompt": "a photo of a sks cat"}
        flat |= {"concepts.1.instance_token": "sks"}  # the same word, where words learn
    return flat
