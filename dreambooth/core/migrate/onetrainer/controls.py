"""OneTrainer's settings that mean something else here, or are not here; what is left out of a nested one is told of as
`unet.train`. The one home of what became of them, as the predecessor's `controls.py` is for its own.
"""

from __future__ import annotations

from dreambooth.core.migrate.control import READ_FROM_FILE, Control, by_key, of_keys

_OWN_PAPER = "not here: an optimizer is as its paper has it, with the settings beside its name"
_OF_ANOTHER = "not here: models are of SD 1, SD 2 and SDXL"

CONTROLS: dict[str, tuple[Control, ...]] = {
    "Model": (
        of_keys(
            "base_model_name", "the checkpoint is named when a model is created, and stays", place='"Source Checkpoint"'
        ),
        of_keys(
            "model_type",
            "what a file is, is found out from its tensors; models are of SD 1, SD 2 and SDXL",
            place=READ_FROM_FILE,
        ),
        of_keys("training_method", "full, lora or embedding", "general.method"),
        of_keys(
            "vae.model_name",
            "the VAE is chosen when the model is created; on the command line it is create --vae",
            place=f"{READ_FROM_FILE}, VAE",
        ),
        of_keys(
            "unet.model_name, text_encoder.model_name, text_encoder_2.model_name",
            "not here: a checkpoint's parts are its own",
        ),
        of_keys(
            "force_v_prediction, force_epsilon_prediction, rescale_noise_scheduler_to_zero_terminal_snr",
            "found out from the file; Prediction Type overrules that",
            place=READ_FROM_FILE,
        ),
        of_keys(
            "output_model_destination", "the file's name; export --to writes it elsewhere", "saving.custom_model_name"
        ),
        of_keys(
            "output_model_format",
            "a LoRA is always safetensors as kohya's are; export writes folders of diffusers",
            "saving.checkpoint_format",
            place="export",
        ),
        of_keys("output_dtype", "half precision or full", "saving.half_model"),
        of_keys(
            "include_train_config, save_filename_prefix", "not here: what a result's header says is written by itself"
        ),
        of_keys(
            "bundle_additional_embeddings",
            "off by itself: only AUTOMATIC1111 and SD.Next read it",
            "saving.embedding_in_lora",
        ),
        of_keys(
            "unet.weight_dtype",
            "int8 is 8 bits and nf4 4, under a LoRA with gradient checkpointing",
            "memory.unet_weights",
        ),
        of_keys(
            "text_encoder.weight_dtype, text_encoder_2.weight_dtype, vae.weight_dtype, embedding_weight_dtype, "
            "lora_weight_dtype, weight_dtype, "
            "fallback_train_dtype",
            "what is trained lies in full precision, the rest as mixed precision says, and the VAE in full precision",
            "tuning.mixed_precision",
        ),
        of_keys(
            "svd_dtype, svd_rank, quantization.svd_dtype, quantization.svd_rank, quantization.layer_filter, "
            "quantization.layer_filter_preset, quantization.layer_filter_regex, quantization.cache_dir",
            "not here: 8 and 4 bits are of all the UNet's layers",
            "memory.unet_weights",
        ),
    ),
    "Concepts": (
        of_keys(
            "concept_file_name",
            "its concepts, where the file is found; or import that file too",
            "concepts.N.instance_data_dir",
        ),
        of_keys("path", "another name", "concepts.N.instance_data_dir"),
        of_keys(
            "text.prompt_source, text.prompt_path",
            "captions beside the pictures, or one text for them all",
            "concepts.N.instance_prompt",
        ),
        of_keys(
            "balancing, balancing_strategy",
            "how often each epoch sees the pictures, as a whole number",
            "concepts.N.repeats",
        ),
        of_keys(
            "type",
            "pictures to look at are held out of a concept's own, and the prediction for a class prompt needs no "
            "pictures",
            "concepts.N.held_out",
            "concepts.N.class_mode",
        ),
        of_keys(
            "enabled, include_subdirectories",
            "a concept is there or is not, with all that its folder holds",
            "concepts.N.instance_data_dir",
        ),
        of_keys("loss_weight", "another name", "concepts.N.loss_weight"),
        of_keys(
            "image_variations",
            "versions of each picture; 1 is a picture as it is, whatever may change it",
            "pictures.variants",
        ),
        of_keys("text_variations", "texts of each picture", "captions.variants"),
        of_keys("image.enable_crop_jitter", "with several versions of a picture", "pictures.crop"),
        of_keys(
            "image.enable_random_flip", "one for all concepts, with several versions of a picture", "pictures.hflip"
        ),
        of_keys(
            "image.enable_random_rotate, image.random_rotate_max_angle",
            "one for all concepts, with several versions of a picture",
            "pictures.rotation",
        ),
        of_keys(
            "image.enable_random_brightness, image.random_brightness_max_strength",
            "one for all concepts, with several versions of a picture",
            "pictures.brightness",
        ),
        of_keys(
            "image.enable_random_saturation, image.random_saturation_max_strength",
            "one for all concepts, with several versions of a picture",
            "pictures.colour",
        ),
        of_keys("text.enable_tag_shuffling", "one for all concepts", "captions.shuffle_tags"),
        of_keys(
            "text.tag_delimiter",
            "tags are parted by commas alone",
            "captions.shuffle_tags",
            "captions.tag_dropout",
        ),
        of_keys("text.keep_tags_count", "one for all concepts", "captions.keep_tags"),
        of_keys(
            "text.tag_dropout_enable, text.tag_dropout_mode, text.tag_dropout_probability",
            "one for all concepts, and each tag goes by itself and as likely as any other, where full leaves out all "
            "of them and random weighted the last more often",
            "captions.tag_dropout",
        ),
        of_keys(
            "text.tag_dropout_special_tags, text.tag_dropout_special_tags_mode, text.tag_dropout_special_tags_regex",
            "a whitelist, whose tags are never left out, written out with commas between; there is no blacklist and "
            "no pattern",
            "captions.tag_dropout_except",
        ),
        of_keys("aspect_ratio_bucketing", "another name", "pictures.buckets"),
        of_keys("latent_caching, only_cache", "always so: pictures are encoded once", "pictures.cache_on_disk"),
        of_keys(
            "clear_cache_before_training",
            "a picture that has changed is known, and encoded anew",
            "pictures.cache_on_disk",
        ),
        of_keys("resolution", "one for all pictures; of several the first", "general.resolution"),
        of_keys("masked_training", "with masks of that name, too: NAME-masklabel.png", "objective.masked"),
        of_keys(
            "unmasked_probability, normalize_masked_area_loss, masked_prior_preservation_weight, "
            "custom_conditioning_image",
            "not here: only how much the rest of a masked picture counts",
            "objective.unmasked_weight",
        ),
    ),
    "Training": (
        of_keys("epochs", "how often each of your pictures is seen", "intervals.num_train_epochs"),
        of_keys("train_dtype", "FLOAT_32 and TFLOAT_32 are no", "tuning.mixed_precision"),
        of_keys(
            "optimizer.optimizer",
            "D-Adaptation and Prodigy's variants become prodigy, others that are not here adamw",
            "optimizer.name",
        ),
        of_keys("optimizer.is_paged", "an optimizer of its own", "optimizer.name"),
        of_keys(
            "optimizer.weight_decay", "of both parts", "optimizer.weight_decay", "optimizer.text_encoder_weight_decay"
        ),
        of_keys("optimizer.eps", "another name", "optimizer.epsilon"),
        of_keys("optimizer.fused_back_pass", "for full fine-tuning", "memory.step_in_backward"),
        of_keys("optimizer.stochastic_rounding", "always so where weights are held in bf16", "memory.bf16_weights"),
        of_keys("optimizer_defaults", "not here: what each optimizer was last set to"),
        of_keys(
            "clip_grad_norm",
            "of each part by itself, of both together there",
            "optimizer.max_grad_norm",
            "optimizer.text_encoder_max_grad_norm",
        ),
        of_keys(
            "learning_rate",
            "of whatever has no rate of its own; 3e-6 there unless it is said",
            "learning.learning_rate",
            "learning.text_encoder_learning_rate",
            "learning.lora_learning_rate",
            "learning.lora_text_encoder_learning_rate",
            "learning.embedding_learning_rate",
        ),
        of_keys("unet.learning_rate", "another name", "learning.learning_rate", "learning.lora_learning_rate"),
        of_keys(
            "text_encoder.learning_rate, text_encoder_2.learning_rate",
            "the second is so many times the first",
            "learning.text_encoder_learning_rate",
            "learning.lora_text_encoder_learning_rate",
            "learning.text_encoder_2_ratio",
        ),
        of_keys("learning_rate_scheduler", "COSINE_WITH_HARD_RESTARTS is cosine_with_restarts", "learning.scheduler"),
        of_keys(
            "custom_learning_rate_scheduler, scheduler_params", "not here: a curve of one's own", "learning.scheduler"
        ),
        of_keys(
            "learning_rate_warmup_steps",
            "a share of the run; 1 and less is one there, too, and 200 steps unless it is said",
            "learning.warmup",
        ),
        of_keys("learning_rate_cycles", "with restarts alone", "learning.cycles"),
        of_keys("learning_rate_min_factor", "another name", "learning.minimum"),
        of_keys(
            "learning_rate_scaler",
            "not here: a rate is what it says, whatever the batch; set the rates to what it made of them",
        ),
        of_keys("loss_scaler", "not here: a batch counts as one, whatever its size"),
        of_keys("ema", "another name", "tuning.use_ema"),
        of_keys("ema_update_step_interval", "at every step", "tuning.ema_decay"),
        of_keys("non_ema_sampling", "previews show what is saved", "saving.weights"),
        of_keys(
            "gradient_checkpointing, unet.gradient_checkpointing",
            "on or off, and on there unless it is said; streamed weights are a setting of their own",
            "batching.gradient_checkpointing",
        ),
        of_keys(
            "text_encoder.gradient_checkpointing, text_encoder_2.gradient_checkpointing, vae.gradient_checkpointing",
            "one for all parts",
            "batching.gradient_checkpointing",
        ),
        of_keys(
            "layer_offload_fraction, enable_activation_offloading, enable_async_offloading, async_offloading, "
            "unet.offload_fraction, unet.activation_offloading, "
            "text_encoder.offload_fraction, text_encoder.activation_offloading, text_encoder_2.offload_fraction, "
            "text_encoder_2.activation_offloading, vae.offload_fraction, vae.activation_offloading",
            "streamed fetches each block for its turn",
            "memory.unet_weights",
        ),
        of_keys("attention_mechanism", "SDP is sdpa", "memory.attention"),
        of_keys("compile, force_circular_padding", "not here: steps are traced, and pictures do not tile"),
        of_keys("unet.train", "another name", "tuning.train_unet"),
        of_keys(
            "text_encoder.train, text_encoder_2.train",
            "a share of the run, or a step, for those that are trained, as they are there unless it is said",
            "tuning.text_encoder_ratio",
            "tuning.text_encoders",
        ),
        of_keys(
            "text_encoder.stop_training_after, text_encoder.stop_training_after_unit, "
            "text_encoder_2.stop_training_after, text_encoder_2.stop_training_after_unit",
            "a share of the run, or a step",
            "tuning.text_encoder_ratio",
            "tuning.text_encoder_steps",
        ),
        of_keys("unet.stop_training_after, unet.stop_training_after_unit", "not here: the UNet is trained to the end"),
        of_keys(
            "text_encoder.train_embedding, text_encoder_2.train_embedding", "a word is trained in all text encoders"
        ),
        of_keys("text_encoder_layer_skip", "one more here: 1 there is 2", "tuning.clip_skip"),
        of_keys(
            "text_encoder_2_layer_skip", "SD 2 and SDXL are always read at one and the same block", "tuning.clip_skip"
        ),
        of_keys(
            "text_encoder.dropout_probability",
            "the share of pictures that is read without a caption",
            "captions.dropout",
        ),
        of_keys("text_encoder_2.dropout_probability", "one for all text encoders", "captions.dropout"),
        of_keys("embedding_learning_rate", "another name", "learning.embedding_learning_rate"),
        of_keys(
            "preserve_embedding_norm, embedding.is_output_embedding", "not here: a word is trained without such limits"
        ),
        of_keys("embedding.model_name", "a file to continue from", "embedding.start_file"),
        of_keys("embedding.placeholder", "the word that is trained", "concepts.N.instance_token"),
        of_keys("embedding.token_count", "another name", "embedding.vectors"),
        of_keys("embedding.initial_embedding_text", "another name", "embedding.initial_text"),
        of_keys(
            "embedding.train, embedding.stop_training_after, embedding.stop_training_after_unit, embeddings",
            "an embedding alone is trained to the end",
            "embedding.ratio",
        ),
        of_keys("additional_embeddings", "one word for each concept", "embedding.enabled", "concepts.N.instance_token"),
    ),
    "LoRA": (
        of_keys("peft_type", "OFT_2 is oft", "lora.kind"),
        of_keys("lora_rank", "16 there unless it is said", "lora.rank"),
        of_keys("lora_alpha", "1 there unless it is said", "lora.alpha"),
        of_keys("lora_decompose", "a kind of its own", "lora.kind"),
        of_keys(
            "lora_decompose_norm_epsilon, lora_decompose_output_axis",
            "not here: DoRA is as its paper has it",
            "lora.kind",
        ),
        of_keys("lora_model_name", "a file to continue from", "lora.start_file"),
        of_keys("dropout_probability", "another name", "lora.dropout"),
        of_keys(
            "layer_filter_preset, lora_layer_preset",
            "full is convolutions, attn-mlp transformer, attn-only attention; of full fine-tuning all or attention",
            "lora.layers",
            "tuning.unet_layers",
        ),
        of_keys(
            "layer_filter, layer_filter_regex, lora_layers, lora_layers_regex",
            "whole groups of layers, or blocks by name",
            "lora.layers",
            "lora.blocks",
        ),
        of_keys("oft_block_size", "the side of OFT's blocks", "lora.rank"),
        of_keys("lokr_dim", "another name", "lora.rank"),
        of_keys("lokr_decompose_factor", "-1 there is 0 here", "lora.lokr_factor"),
        of_keys(
            "oft_block_share, oft_scaled, lokr_decompose_both, lokr_use_tucker, lokr_weight_decompose, "
            "lokr_dora_on_output, lokr_full_matrix, lokr_vec_trick",
            "not here: there is no such form of a LoRA",
            "lora.kind",
        ),
    ),
    "What is minimised": (
        of_keys(
            "mse_strength, mae_strength, log_cosh_strength, huber_strength",
            "one of mse and huber, and not a mixture",
            "objective.loss",
        ),
        of_keys("huber_delta", "the same at all timesteps there", "objective.huber_delta", "objective.huber_schedule"),
        of_keys("loss_weight_fn", "CONSTANT is none; P2 and SIGMA are not here", "objective.weighting"),
        of_keys(
            "loss_weight_strength, min_snr_gamma",
            "with the weighting min_snr",
            "objective.min_snr_gamma",
            "objective.weighting",
        ),
        of_keys("offset_noise_weight", "another name", "objective.offset_noise"),
        of_keys(
            "generalized_offset_noise", "not here: an offset that changes with the timestep", "objective.offset_noise"
        ),
        of_keys(
            "perturbation_noise_weight", "what is added is not to be predicted here", "objective.input_perturbation"
        ),
        of_keys("min_noising_strength", "a timestep, and not a share", "objective.timestep_min"),
        of_keys("max_noising_strength", "a timestep, and not a share", "objective.timestep_max"),
        of_keys("timestep_distribution", "uniform and logit_normal", "objective.timesteps"),
        of_keys("noising_bias", "with LOGIT_NORMAL its mean", "objective.logit_mean"),
        of_keys("noising_weight", "with LOGIT_NORMAL its width, less 1", "objective.logit_std"),
        of_keys("timestep_shift, dynamic_timestep_shifting", _OF_ANOTHER, "objective.timesteps"),
    ),
    "Results and previews": (
        of_keys(
            "samples, sample_definition_file_name",
            "one list of prompts; the rest is one for all, the first's",
            "previews.prompts",
        ),
        of_keys(
            "sample_after, sample_after_unit",
            "in epochs or steps",
            "intervals.save_preview_every",
            "intervals.save_preview_every_steps",
        ),
        of_keys(
            "save_every, save_every_unit, save_after, save_after_unit",
            "in epochs or steps",
            "intervals.save_model_every",
            "intervals.save_model_every_steps",
        ),
        of_keys(
            "backup_after, backup_after_unit",
            "in epochs or steps",
            "intervals.save_state_every",
            "intervals.save_state_every_steps",
        ),
        of_keys("rolling_backup_count, rolling_backup", "another name", "intervals.states_kept"),
        of_keys("backup_before_save, sample_skip_first, save_skip_first", "not here", "intervals.save_model_every"),
        of_keys(
            "sample_image_format, sample_video_format, sample_audio_format, samples_to_tensorboard",
            "not here: previews lie in the run's folder",
        ),
        of_keys("continue_last_backup", "a run resumes from a state of its own", place='"Resume"'),
        of_keys("prevent_overwrites", "always so"),
        of_keys("tensorboard", "another name", "reporting.tensorboard"),
        of_keys(
            "tensorboard_expose, tensorboard_always_on, tensorboard_port",
            "start TensorBoard yourself; it reads the run's folder",
            "reporting.tensorboard",
        ),
        of_keys(
            "validation, validate_after, validate_after_unit",
            "so many pictures of a concept, looked at every so many epochs",
            "concepts.N.held_out",
            "intervals.validate_every",
        ),
    ),
    "Machine": (
        of_keys(
            "train_device, temp_device, dataloader_threads, enable_autocast_cache",
            "the engine takes the GPU that there is",
        ),
        of_keys(
            "multi_gpu, device_indexes, gradient_reduce_precision, fused_gradient_reduce, async_gradient_reduce, "
            "async_gradient_reduce_buffer",
            "so many GPUs",
            "batching.num_processes",
        ),
        of_keys("cloud, secrets", "not here: a run stays on this machine"),
        of_keys("huggingface_cache_dir, offline_mode", "nothing is fetched while a run goes on"),
    ),
}

BY_KEY = by_key(CONTROLS)
IN_ITS_OPTIMIZER = _OWN_PAPER  # what is said of the rest of optimizer
OF_ANOTHER = _OF_ANOTHER
