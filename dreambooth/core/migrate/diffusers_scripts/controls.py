"""Arguments of diffusers' DreamBooth scripts that mean something else here, or are not here.

The one home of what became of them, as the predecessor's `controls.py` is for its own. Those of ShivamShrirao's fork,
which older guides use, are among them.
"""

from __future__ import annotations

from dreambooth.core.migrate.control import READ_FROM_FILE, Control, by_key, of_keys

_EVERY = "how often results are written here; states are saved by themselves, too"
_SAMPLES = "previews are drawn as often as intervals say"
_LIBRARY = "not here: nothing is uploaded, and no data set is fetched"

CONTROLS: dict[str, tuple[Control, ...]] = {
    "Model": (
        of_keys(
            "pretrained_model_name_or_path, revision, variant",
            "the checkpoint is named when a model is created, and stays",
            place='"Source Checkpoint"',
        ),
        of_keys(
            "pretrained_vae_name_or_path, pretrained_vae_model_name_or_path",
            "the VAE is chosen when the model is created; on the command line it is create --vae",
            place=f"{READ_FROM_FILE}, VAE",
        ),
        of_keys("tokenizer_name, class_labels_conditioning", "not here: models are of SD 1, SD 2 and SDXL"),
    ),
    "Pictures and captions": (
        of_keys("concepts_list", "import that file too", place='Model tab, "Import settings"'),
        of_keys(
            "num_class_images", "so many for each of yours here, and in all there", "concepts.N.num_class_images_per"
        ),
        of_keys("with_prior_preservation", "on where class pictures are asked for", "concepts.N.num_class_images_per"),
        of_keys("resolution", "a multiple of 64", "general.resolution"),
        of_keys("center_crop", "else a random part, as there", "pictures.crop"),
        of_keys("random_flip", "both sides of each picture, in turn", "pictures.hflip"),
        of_keys(
            "tokenizer_max_length, text_encoder_use_attention_mask",
            "75 tokens are read here unless more are asked for",
            "tuning.max_token_length",
        ),
        of_keys("pre_compute_text_embeddings, not_cache_latents", "always so where it can be: all is encoded once"),
        of_keys("prior_generation_precision", "class pictures are drawn in the precision of the run"),
        of_keys("image_interpolation_mode", "Lanczos here"),
        of_keys("dataset_name, dataset_config_name, image_column, caption_column, cache_dir", _LIBRARY),
    ),
    "Length and saving": (
        of_keys(
            "num_train_epochs",
            "with class pictures an epoch there sees as many pictures as there are of the class; taken as steps",
            "intervals.num_train_epochs",
            "intervals.max_train_steps",
        ),
        of_keys("checkpointing_steps", "states, of which the newest stay", "intervals.save_state_every_steps"),
        of_keys("checkpoints_total_limit", "how many states stay", "intervals.states_kept"),
        of_keys("save_interval", _EVERY, "intervals.save_model_every_steps"),
        of_keys("save_min_steps", "not here: results are written from the beginning"),
        of_keys("resume_from_checkpoint", "a run resumes from a state of its own", place='"Resume"'),
        of_keys("output_dir", "results go into the WebUI's folders; export --to writes them elsewhere", place="export"),
        of_keys("output_kohya_format", "always so: LoRAs are written as kohya's scripts write them"),
        of_keys("skip_save_text_encoder", "not here: a checkpoint is written whole"),
    ),
    "Rates and precision": (
        of_keys("scale_lr", "multiplied by the pictures of a step", "learning.learning_rate"),
        of_keys("lr_warmup_steps", "a share of the run", "learning.warmup"),
        of_keys("train_text_encoder", "a share of the run: 1 is all of it, 0 none", "tuning.text_encoder_ratio"),
        of_keys("rank", "alpha is the same, and the attention layers alone get one", "lora.rank"),
        of_keys("offset_noise", "a tenth of the noise, as there", "objective.offset_noise"),
        of_keys("snr_gamma", "min-SNR weighting", "objective.min_snr_gamma"),
        of_keys(
            "enable_xformers_memory_efficient_attention", "PyTorch's own attention is as quick", "memory.attention"
        ),
        of_keys("set_grads_to_none, allow_tf32", "always so"),
        of_keys("do_edm_style_training", "not here: EDM models cannot be trained"),
        of_keys(
            "prodigy_beta3, prodigy_decouple, prodigy_use_bias_correction, prodigy_safeguard_warmup",
            "Prodigy's own defaults hold here",
            "optimizer.name",
        ),
    ),
    "Previews and the rest": (
        of_keys("validation_steps, validation_epochs", _SAMPLES, "intervals.save_preview_every"),
        of_keys("validation_images, validation_scheduler", _SAMPLES, "previews.prompts"),
        of_keys("dataloader_num_workers, local_rank", "the engine starts its own processes"),
        of_keys(
            "logging_dir, report_to, log_interval", "TensorBoard's files lie with the run", "reporting.tensorboard"
        ),
        of_keys("hub_model_id, push_to_hub", _LIBRARY),
        of_keys("hub_token", "not here: HF_TOKEN in the environment is for a model behind a login"),
    ),
}
BY_KEY = by_key(CONTROLS)
