"""What a setting is called elsewhere: by the predecessor, kohya's scripts and OneTrainer, and in guides and talk."""

from __future__ import annotations

from dreambooth.core.migrate import kohya_dataset, onetrainer, sd_scripts
from dreambooth.core.migrate.control import NOT_HERE
from dreambooth.core.migrate.onetrainer import controls as of_onetrainer
from dreambooth.core.migrate.predecessor import SAME, controls, of_concepts, of_rates, of_results
from dreambooth.core.migrate.sd_scripts import controls as of_sd_scripts

_TALK = {
    "concepts.N.class_mode": "regularization reg images prior preservation class images",
    "concepts.N.class_data_dir": "reg_data_dir regularization images",
    "concepts.N.num_class_images_per": "num_class_images class images regularization with_prior_preservation",
    "concepts.N.instance_prompt": "combine_prompt_from_txt caption files",
    "concepts.N.repeats": "num_repeats dataset_repeats",
    "concepts.N.instance_token": "identifier trigger word unique token",
    "general.method": "textual inversion fine tuning native training unfreeze model",
    "general.resolution": "size width height",
    "captions.dropout": "caption_dropout_rate",
    "pictures.buckets": "arb aspect_ratio_bucket",
    "pictures.hflip": "flip mirror augmentation",
    "pictures.crop_jitter": "zoom augmentation",
    "pictures.rotation": "rotate augmentation",
    "pictures.brightness": "augmentation",
    "pictures.colour": "color saturation augmentation",
    "intervals.num_train_epochs": "max_train_epochs steps per image(epoch)",
    "intervals.max_train_steps": "max_train_steps",
    "intervals.save_model_every": "save_every_n_epochs save_interval checkpoint snapshot",
    "intervals.save_model_every_steps": "save_every_n_steps checkpoint snapshot",
    "intervals.results_kept": "save_last_n_epochs save_last_n_steps checkpoints_total_limit step_saves_to_keep",
    "intervals.save_state_every": "save_state resume checkpoint snapshot",
    "intervals.save_state_every_steps": "checkpointing_steps",
    "intervals.save_preview_every": "sample_every_n_epochs validation_epochs sample images",
    "batching.gradient_checkpointing": "low vram memory",
    "batching.num_processes": "multi gpu multi-gpu",
    "batching.class_batch_size": "sample_batch_size generate class images",
    "learning.learning_rate": "lr",
    "learning.text_encoder_learning_rate": "lr learning_rate_te",
    "learning.lora_learning_rate": "lr unet_lr",
    "learning.lora_text_encoder_learning_rate": "lr text_encoder_lr",
    "learning.text_encoder_2_ratio": "lr learning_rate_te2 clip g",
    "learning.lora_plus_ratio": "loraplus_lr_ratio",
    "learning.scheduler": "lr_scheduler",
    "learning.warmup": "lr_warmup_steps warm up",
    "learning.cycles": "lr_scheduler_num_cycles",
    "learning.power": "lr_scheduler_power",
    "optimizer.name": "optimizer_type use_8bit_adam 8-bit bitsandbytes d-adaptation dadapt",
    "lora.rank": "network_dim dimension",
    "lora.alpha": "network_alpha",
    "lora.conv_rank": "conv_dim locon",
    "lora.conv_alpha": "locon",
    "lora.dropout": "network_dropout",
    "lora.kind": "network_module lycoris locon",
    "lora.layers": "network_module lycoris locon conv_dim",
    "lora.blocks": "block weight lbw",
    "lora.max_norm": "max_norm_regularization weight norm",
    "lora.start_file": "network_weights continue resume",
    "embedding.enabled": "pivotal tuning textual inversion",
    "embedding.vectors": "num_vectors_per_token",
    "embedding.initial_text": "init_word",
    "tuning.train_unet": "u-net",
    "tuning.text_encoder_ratio": "set ratio train_text_encoder freeze text encoder",
    "tuning.text_encoder_steps": "stop_text_encoder_training text encoder training steps",
    "tuning.text_encoders": "te1 te2 clip l clip g",
    "tuning.prior_loss_weight": "with_prior_preservation regularization class images",
    "tuning.pad_tokens": "no_token_padding",
    "tuning.clip_skip": "clipskip",
    "tuning.max_token_length": "tokens long prompts",
    "tuning.mixed_precision": "full precision half precision float16 bfloat16",
    "objective.offset_noise": "noise_offset",
    "objective.multires_noise_levels": "multires_noise_iterations pyramid noise",
    "objective.multires_noise_discount": "pyramid noise",
    "objective.input_perturbation": "ip_noise_gamma",
    "objective.loss": "loss_type smooth l1 l2",
    "objective.huber_delta": "huber_c",
    "objective.weighting": "debiased_estimation_loss min-snr",
    "objective.masked": "masked_loss",
    "memory.attention": "mem_eff_attn flash_attention scaled dot product",
    "memory.bf16_weights": "full_bf16 stochastic rounding",
    "memory.unet_weights": "fp8_base quantized qlora block swap blocks_to_swap offload",
    "memory.step_in_backward": "fused_backward_pass",
    "memory.vae_decoding": "vae slicing tiling",
    "previews.prompts": "sample_prompts validation_prompt sanity",
    "previews.scheduler": "sampler sampling method",
    "previews.seed": "sanity",
    "saving.half_model": "save_precision fp16 pruned",
    "saving.checkpoint_format": "save_model_as",
    "saving.custom_model_name": "output_name",
    "saving.weights": "ema",
    "reporting.tensorboard": "wandb logging graph",
    "reporting.webhook_url": "discord slack",
}
# What guides call the predecessor's controls that are no settings here, by their labels.
OF_CONTROLS = {
    "Create From Hub, Model Path, HuggingFace Token": "pretrained_model_name_or_path revision",
    "Set Gradients to None When Zeroing": "setting",
    "Training Wizard (Person), Training Wizard (Object/Style)": "native training preset",
    "Use Concepts List, Concepts List": "concepts_list",
}


def other_names() -> dict[str, str]:
    """{our setting: every other name of it, in small letters}."""
    found: dict[str, list[str]] = {key: [names] for key, names in _TALK.items()}
    of_a_concept = {key: f"concepts.N.{ours}" for key, ours in of_concepts.SAME.items()}
    same = (kohya_dataset.SAME, sd_scripts.SAME, onetrainer.SAME)
    for table in (SAME, of_concepts.SAMPLES, of_rates.RATES, of_a_concept, *same):
        for theirs, ours in table.items():
            found.setdefault(ours, []).append(theirs)
    for theirs, rows in kohya_dataset.CHANGED.items():
        for ours, _, _ in rows:
            found.setdefault(ours, []).append(theirs)
    for control in controls.every():
        for ours in control.ours:
            found.setdefault(ours, []).extend([control.label, *control.keys])
    for sections in (of_sd_scripts.CONTROLS, of_onetrainer.CONTROLS):
        for control in (one for some in sections.values() for one in some if not one.why.startswith(NOT_HERE)):
            for ours in control.ours:
                found.setdefault(ours, []).extend(control.keys)
    for ours, names in (
        ("learning.scheduler", of_rates.SCHEDULES),
        ("optimizer.name", of_rates.OPTIMIZERS),
        ("previews.scheduler", of_results.SAMPLERS),
    ):
        found.setdefault(ours, []).extend(names)
    return {key: " ".join(names).lower() for key, names in found.items()}
