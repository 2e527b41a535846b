"""Settings of kohya's scripts (sd-scripts) and of their page (kohya_ss) that mean something else here, or are not here.

The one home of what became of them, as the predecessor's `controls.py` is for its own.
"""

from __future__ import annotations

from dreambooth.core.migrate.control import READ_FROM_FILE, Control, by_key, of_keys

_FILE = "what a file is, is found out from its tensors"
_RUN = "a run resumes from a state of its own"
_BLOCKS = "which blocks get a LoRA is a setting; ranks and rates are the same for all that do"
_CAPTIONS = "captions are read from a .txt beside each picture"
_LOADING = "always so: pictures are encoded once before the run, and nothing else is loaded while it goes on"
_ACCELERATE = "the engine starts its own processes"
_NOT_SHIFTED = "not here: a strength that changes from picture to picture"

CONTROLS: dict[str, tuple[Control, ...]] = {
    "Model": (
        of_keys(
            "pretrained_model_name_or_path",
            "the checkpoint is named when a model is created, and stays",
            place='"Source Checkpoint"',
        ),
        of_keys(
            "v2, v_parameterization, sdxl", f"{_FILE}; Family and Prediction Type overrule that", place=READ_FROM_FILE
        ),
        of_keys("zero_terminal_snr", f"{_FILE}, and Prediction Type has it, too", place=READ_FROM_FILE),
        of_keys(
            "vae",
            "the VAE is chosen when the model is created; on the command line it is create --vae",
            place=f"{READ_FROM_FILE}, VAE",
        ),
        of_keys("no_half_vae", "always so: the VAE works in full precision"),
        of_keys("train_inpainting", "an inpainting model is known by its tensors", place='"Source Checkpoint"'),
        of_keys(
            "flux1_checkbox, sd3_checkbox, hunyuan_image_checkbox, anima_checkbox, lumina_checkbox",
            "not here: models are of SD 1, SD 2 and SDXL",
        ),
        of_keys("tokenizer_cache_dir, disable_mmap_load_safetensors", "not here: files are read where they lie"),
        of_keys(
            "base_weights, base_weights_multiplier", "export --merge makes a checkpoint to train from", place="export"
        ),
    ),
    "Pictures and captions": (
        of_keys(
            "train_data_dir, reg_data_dir",
            "each folder in it that is named after repeats and words, such as 10_sks dog, is a concept",
            "concepts.N.instance_data_dir",
            "concepts.N.class_data_dir",
        ),
        of_keys("dataset_config", "import that file too", place='Model tab, "Import settings"'),
        of_keys(
            "in_json, dataset_class, dataset_repeats, image_folder, caption_metadata_filename, "
            "latent_metadata_filename",
            f"name the folder of pictures; {_CAPTIONS}",
            "concepts.N.instance_data_dir",
        ),
        of_keys("resolution", "a square of about that area, a multiple of 64", "general.resolution"),
        of_keys("caption_extension, caption_extention", "only .txt and .caption are read; rename the files"),
        of_keys("weighted_captions", "the prompts of the class and of previews are read so, too", "captions.weighted"),
        of_keys("no_token_padding", "the other way round", "tuning.pad_tokens"),
        of_keys(
            "resize_interpolation, debug_dataset",
            "not here: check shows every picture as it is trained",
            place='Concepts tab, "Check the pictures"',
        ),
        of_keys("cache_latents", "always so: pictures are encoded once", "pictures.cache_on_disk"),
        of_keys("cache_latents_to_disk", "another name", "pictures.cache_on_disk"),
        of_keys(
            "cache_text_encoder_outputs, cache_text_encoder_outputs_to_disk",
            "always so where it is not trained, which this asked for",
            "tuning.text_encoder_ratio",
        ),
        of_keys(
            "masked_loss",
            "masks lie beside the pictures as NAME-mask.png, and what they leave out counts not at all there",
            "objective.masked",
            "objective.unmasked_weight",
        ),
    ),
    "What is trained": (
        of_keys(
            "network_module, LoRA_type",
            "the kind, and which layers; kohya's own LoRA is lora on transformer, with conv_dim on convolutions",
            "general.method",
            "lora.kind",
            "lora.layers",
        ),
        of_keys("network_dim", "4 there unless it is said", "lora.rank"),
        of_keys("network_alpha", "1 there unless it is said", "lora.alpha"),
        of_keys("conv_dim", "of convolutions of more than a pixel", "lora.conv_rank", "lora.layers"),
        of_keys("conv_alpha", "1 there unless it is said; with LyCORIS network_alpha", "lora.conv_alpha"),
        of_keys("algo, dora_wd", "the kind of LoRA", "lora.kind"),
        of_keys("preset, LyCORIS_preset", "which layers get a LoRA", "lora.layers"),
        of_keys("factor", "-1 there is 0 here", "lora.lokr_factor"),
        of_keys(
            "rank_dropout, module_dropout, rank_dropout_scale",
            "values between a LoRA's matrices are left out, and neither ranks nor whole layers",
            "lora.dropout",
        ),
        of_keys(
            "use_cp, use_tucker, use_scalar, constrain, constraint, rescaled, train_norm, decompose_both, "
            "train_on_input, "
            "bypass_mode, unit, block_size, train_lora_ggpo, ggpo_sigma, ggpo_beta",
            "not here: there is no such form of a LoRA",
        ),
        of_keys(
            "down_lr_weight, mid_lr_weight, up_lr_weight, block_lr_zero_threshold, block_dims, block_alphas, "
            "conv_block_dims, "
            "conv_block_alphas, block_lr",
            _BLOCKS,
            "lora.blocks",
        ),
        of_keys("loraplus_lr_ratio, loraplus_unet_lr_ratio", "one for both parts", "learning.lora_plus_ratio"),
        of_keys("loraplus_text_encoder_lr_ratio", "one for both parts", "learning.lora_plus_ratio"),
        of_keys("scale_weight_norms", "another name", "lora.max_norm"),
        of_keys("network_weights", "a file to continue from", "lora.start_file"),
        of_keys("dim_from_weights", "always so where a file is continued", "lora.start_file"),
        of_keys("network_args", "each is listed by its own name"),
        of_keys(
            "network_train_unet_only, network_train_text_encoder_only",
            "both parts are trained there unless it is told otherwise",
            "tuning.train_unet",
            "tuning.text_encoder_ratio",
        ),
        of_keys("train_text_encoder", "a share of the run: 1 is all of it, 0 none", "tuning.text_encoder_ratio"),
        of_keys(
            "stop_text_encoder_training",
            "a step, with class pictures half of it; on the page there a share of the run. -1 is none of it, and 0 "
            "none or, on the page, all",
            "tuning.text_encoder_ratio",
            "tuning.text_encoder_steps",
        ),
        of_keys("token_string", "the word that is trained", "concepts.N.instance_token"),
        of_keys("init_word", "another name", "embedding.initial_text"),
        of_keys("num_vectors_per_token", "another name", "embedding.vectors"),
        of_keys("weights", "a file to continue from", "embedding.start_file"),
        of_keys(
            "use_object_template, use_style_template, template",
            "not here: write the caption",
            "concepts.N.instance_prompt",
        ),
    ),
    "Course and rates": (
        of_keys(
            "epoch, max_train_epochs",
            "epochs; a number of steps in all goes before the page's epoch, and after max_train_epochs",
            "intervals.num_train_epochs",
        ),
        of_keys(
            "max_train_steps",
            "1600 there unless it or max_train_epochs is said; with class pictures half of them, as a step here "
            "sees yours and the class's",
            "intervals.max_train_steps",
        ),
        of_keys(
            "learning_rate",
            "of whatever has no rate of its own; 2e-6 there unless it is said",
            "learning.learning_rate",
            "learning.text_encoder_learning_rate",
            "learning.lora_learning_rate",
            "learning.lora_text_encoder_learning_rate",
            "learning.embedding_learning_rate",
        ),
        of_keys(
            "unet_lr",
            "0 or empty on the page is the general rate, or none where the other part has one",
            "learning.lora_learning_rate",
        ),
        of_keys(
            "text_encoder_lr",
            "of SDXL's two the second is so many times the first, and one with a rate of 0 is not trained; 0 or empty "
            "on the page is the general rate, or none where the UNet has one",
            "learning.lora_text_encoder_learning_rate",
            "learning.text_encoder_2_ratio",
            "tuning.text_encoders",
        ),
        of_keys(
            "learning_rate_te, learning_rate_te1, learning_rate_te2",
            "of SDXL's two the second is so many times the first, and one with a rate of 0 is not trained",
            "learning.text_encoder_learning_rate",
            "learning.text_encoder_2_ratio",
            "tuning.text_encoders",
        ),
        of_keys(
            "lr_scheduler",
            "constant_with_warmup is constant with learning.warmup, cosine_with_min_lr is cosine with learning.minimum",
            "learning.scheduler",
        ),
        of_keys(
            "lr_scheduler_type, lr_scheduler_args, lr_decay_steps, lr_scheduler_timescale",
            "not here: a curve of one's own",
            "learning.scheduler",
        ),
        of_keys("lr_warmup", "a share of the run, and not a percentage", "learning.warmup"),
        of_keys("lr_warmup_steps", "a share of the run, and not so many steps", "learning.warmup"),
        of_keys("lr_scheduler_num_cycles", "1 there unless it is said", "learning.cycles"),
        of_keys("lr_scheduler_power", "1 there unless it is said", "learning.power"),
        of_keys("lr_scheduler_min_lr_ratio", "another name", "learning.minimum"),
        of_keys(
            "optimizer_type",
            "D-Adaptation and Prodigy's variants become prodigy, others that are not here adamw",
            "optimizer.name",
        ),
        of_keys("use_8bit_adam, use_lion_optimizer", "the optimizer's name", "optimizer.name"),
        of_keys("optimizer_args", "each is listed by its own name"),
        of_keys(
            "max_grad_norm",
            "of each part by itself, of both together there",
            "optimizer.max_grad_norm",
            "optimizer.text_encoder_max_grad_norm",
        ),
        of_keys("weight_decay", "of both parts", "optimizer.weight_decay", "optimizer.text_encoder_weight_decay"),
        of_keys("betas", "two settings", "optimizer.beta1", "optimizer.beta2"),
        of_keys("eps", "another name", "optimizer.epsilon"),
        of_keys("d_coef", "another name", "optimizer.d_coef"),
        of_keys(
            "decouple, use_bias_correction, safeguard_warmup, scale_parameter, relative_step, warmup_init, "
            "momentum, nesterov, d0, "
            "growth_rate, amsgrad, block_wise, optimizer_schedulefree_wrapper, schedulefree_wrapper_args, "
            "fused_optimizer_groups, "
            "blockwise_fused_optimizers",
            "not here: an optimizer is as its paper has it, with the settings beside its name",
            "optimizer.name",
        ),
        of_keys("sample_at_first", "always so: the first previews are made before the first step"),
    ),
    "What is minimised": (
        of_keys("prior_loss_weight", "1 there unless it is said", "tuning.prior_loss_weight"),
        of_keys("loss_type", "l2 is mse; smooth_l1 and l1 are nearly huber", "objective.loss"),
        of_keys("huber_c", "another name", "objective.huber_delta"),
        of_keys("huber_scale", "not here: the loss counts as it is"),
        of_keys("min_snr_gamma", "with the weighting min_snr", "objective.min_snr_gamma", "objective.weighting"),
        of_keys("debiased_estimation_loss", "a weighting; there is one at a time", "objective.weighting"),
        of_keys("scale_v_pred_loss_like_noise_pred", "a weighting; there is one at a time", "objective.weighting"),
        of_keys("v_pred_like_loss", "not here: a share of another loss is added there", "objective.weighting"),
        of_keys("noise_offset", "another name", "objective.offset_noise"),
        of_keys("noise_offset_type", "the page there takes one or the other, Original or Multires"),
        of_keys("noise_offset_random_strength, ip_noise_gamma_random_strength", _NOT_SHIFTED),
        of_keys(
            "adaptive_noise_scale", "not here: an offset that follows a picture's brightness", "objective.offset_noise"
        ),
        of_keys(
            "multires_noise_iterations",
            "the coarser levels alone, one fewer: the first there is as fine as the noise",
            "objective.multires_noise_levels",
        ),
        of_keys("max_timestep", "the last step that is drawn, and not the first that is not", "objective.timestep_max"),
    ),
    "Results and previews": (
        of_keys("output_dir", "results go into the WebUI's folders; export --to writes them elsewhere", place="export"),
        of_keys(
            "save_model_as",
            "export writes folders of diffusers; a LoRA is always safetensors",
            "saving.checkpoint_format",
            place="export",
        ),
        of_keys("use_safetensors", "the file's format", "saving.checkpoint_format"),
        of_keys("save_precision", "half precision or full", "saving.half_model"),
        of_keys("save_n_epoch_ratio", "how often, and not how many", "intervals.save_model_every"),
        of_keys(
            "save_every_n_steps",
            "with class pictures half as many, as a step here sees yours and the class's",
            "intervals.save_model_every_steps",
        ),
        of_keys(
            "save_last_n_epochs, save_last_n_steps",
            "so many results, also where steps are said there; one number for both",
            "intervals.results_kept",
        ),
        of_keys(
            "save_state, save_state_on_train_end, save_last_n_steps_state, save_last_n_epochs_state",
            "states are saved by themselves, and the newest stay until the run ends",
            "intervals.save_state_every",
            "intervals.states_kept",
        ),
        of_keys(
            "resume, initial_epoch, initial_step, skip_until_initial_step, resume_from_huggingface",
            f"{_RUN}; lora.start_file goes on from a result",
            "lora.start_file",
        ),
        of_keys(
            "sample_prompts",
            "one line each there, with what follows -- for all of them; semicolons between here",
            "previews.prompts",
            "previews.negative_prompt",
            "previews.width",
            "previews.height",
            "previews.seed",
            "previews.guidance_scale",
            "previews.steps",
        ),
        of_keys("sample_sampler", "another name", "previews.scheduler"),
        of_keys(
            "sample_every_n_steps",
            "sample_every_n_epochs went before it there; with class pictures half as many, as a step here sees yours "
            "and the class's",
            "intervals.save_preview_every_steps",
        ),
        of_keys(
            "logging_dir, log_with",
            "TensorBoard's files lie with the run; a run sends nothing to anybody",
            "reporting.tensorboard",
        ),
        of_keys(
            "use_wandb, wandb_api_key, wandb_run_name, log_prefix, log_tracker_name, log_tracker_config, log_config",
            "not here: a run sends nothing to anybody; wandb can read the files that this writes",
            "reporting.tensorboard",
        ),
        of_keys(
            "huggingface_repo_id, huggingface_token, huggingface_repo_type, huggingface_repo_visibility, "
            "huggingface_path_in_repo, save_state_to_huggingface, async_upload",
            "not here: nothing is uploaded",
        ),
        of_keys(
            "metadata_title, metadata_author, metadata_description, metadata_license, metadata_tags, "
            "training_comment, no_metadata",
            "not here: what a result's header says is written by itself",
        ),
        of_keys("validation_split, validation_seed", "so many pictures, and not a share", "concepts.N.held_out"),
        of_keys(
            "validate_every_n_steps, validate_every_n_epochs, max_validation_steps",
            "with pictures held out",
            "intervals.validate_every",
        ),
    ),
    "Machine": (
        of_keys(
            "xformers, mem_eff_attn, diffusers_xformers",
            "sdpa, which is PyTorch's own, is the quickest on nearly every device; xformers wants that package",
            "memory.attention",
        ),
        of_keys("sdpa", "another name", "memory.attention"),
        of_keys(
            "full_bf16",
            "for full fine-tuning; each change is rounded at random, so that small ones are not lost",
            "memory.bf16_weights",
        ),
        of_keys("full_fp16", "not here: small changes would be lost; bf16 is rounded at random", "memory.bf16_weights"),
        of_keys(
            "fp8_base, fp8_base_unet", "in 8 bits under a LoRA, with gradient checkpointing", "memory.unet_weights"
        ),
        of_keys("fused_backward_pass", "for full fine-tuning", "memory.step_in_backward"),
        of_keys(
            "blocks_to_swap, cpu_offload_checkpointing, lowram, lowvram, highvram",
            "streamed fetches each block for its turn",
            "memory.unet_weights",
        ),
        of_keys(
            "torch_compile, dynamo_backend, dynamo_mode, dynamo_use_fullgraph, dynamo_use_dynamic",
            "steps are traced instead, with the same numbers",
            "tuning.trace_steps",
        ),
        of_keys(
            "vae_batch_size, batch_size, text_encoder_batch_size, max_data_loader_n_workers, "
            "persistent_data_loader_workers, "
            "skip_cache_check",
            _LOADING,
        ),
        of_keys(
            "num_processes, multi_gpu, gpu_ids, num_machines, main_process_port, num_cpu_threads_per_process, "
            "extra_accelerate_launch_args, "
            "ddp_timeout, ddp_gradient_as_bucket_view, ddp_static_graph, deepspeed, zero_stage, "
            "offload_optimizer_device, "
            "offload_optimizer_nvme_path, offload_param_device, offload_param_nvme_path, zero3_init_flag, "
            "zero3_save_16bit_model, "
            "fp16_master_weights_and_gradients",
            _ACCELERATE,
            "batching.num_processes",
        ),
        of_keys("additional_parameters", "set what it says by the names in this table"),
        of_keys(
            "save_as, file_path, train_dir, generate_caption_database, generate_image_buckets, training_preset, "
            "use_latent_files, full_path, create_caption, create_buckets, "
            "output_config, config_file",
            "buttons and working files there, and no settings",
        ),
    ),
}

BY_KEY = by_key(CONTROLS)
