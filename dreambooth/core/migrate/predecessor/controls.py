"""The predecessor's controls that are elsewhere here, have another name, mean something else, or are not here.

The one home of what became of them: the importer's report, docs/coming-from.md and the page's search say it from here.
What is called the same here and means the same is not listed.
"""

from __future__ import annotations

from collections.abc import Iterator

from dreambooth.core.migrate.control import READ_FROM_FILE, Control, by_key

_NOBODY = "nothing read it there"

CONTROLS: dict[str, tuple[Control, ...]] = {
    "Model": (
        Control(
            "512x Model, Model Type",
            "what a file is, is found out from its tensors; Family, Prediction Type and Resolution overrule that",
            keys=("model_type", "v2"),
            place=READ_FROM_FILE,
        ),
        Control(
            "Create From Hub, Model Path, HuggingFace Token",
            "it takes owner/name of the hub, too; HF_TOKEN in the environment is for a model behind a login",
            place='"Source Checkpoint"',
        ),
        Control(
            "Extract EMA Weights",
            "Weights: ema learns from the averaged weights that some files hold",
            place=READ_FROM_FILE,
        ),
        Control(
            "Pretrained VAE Name or Path",
            "the VAE is chosen when the model is created; on the command line it is create --vae",
            keys=("pretrained_vae_name_or_path",),
            place=f"{READ_FROM_FILE}, VAE",
        ),
        Control("Unfreeze Model", _NOBODY, keys=("train_unfrozen",), ours=("tuning.unet_layers",)),
        Control(
            "Experimental Shared Src, LoRA Shared Diffusers Source",
            "there is nothing to share: a checkpoint is read where it lies, and nothing of it is copied",
            keys=("use_shared_src", "shared_diffusers_path"),
        ),
        Control(
            "Snapshot to Resume",
            "a run resumes from a state of its own; what a snapshot there had learned goes on with that model's "
            "working folder as Source Checkpoint",
            keys=("snapshot",),
            place='"Resume", or a state on the Model tab',
        ),
        Control(
            "Lora Model",
            "name the file with its folder; its name alone does not say where it lies",
            keys=("lora_model_name",),
            ours=("lora.start_file",),
        ),
        Control("Train Inpainting Model", "an inpainting model is known by its tensors", place='"Source Checkpoint"'),
        Control("Load Settings, Save Settings", "what you set is saved at once, and shown when the model is chosen"),
        Control(
            "Cancel",
            "what was learned is kept, thrown away, or gone on with later",
            place='"Stop and keep", "Stop and discard", "Pause"',
        ),
        Control("Save Weights", "another name", place='"Save now"'),
        Control("Generate Samples", "another name", place='"Preview now"'),
        Control("Generate Ckpt", "another name; it writes any result, or a state", place='Generate tab, "Export"'),
        Control("Performance Wizard", "it says what it changed and why", place='"Performance"'),
        Control("Refresh", "the page follows a run by itself, also after it was reloaded"),
        Control("Show Advanced", "another name", place='"Show advanced settings"'),
        Control(
            "Update Extension and Restart, Changelog",
            "the WebUI updates its extensions",
            place="the WebUI's Extensions tab",
        ),
    ),
    "Concepts": (
        Control(
            "Directory (Instance, Class)",
            "another name",
            ours=("concepts.N.instance_data_dir", "concepts.N.class_data_dir"),
        ),
        Control(
            "Prompt (Instance, Class)", "another name", ours=("concepts.N.instance_prompt", "concepts.N.class_prompt")
        ),
        Control("Negative Prompt (Class)", "another name", ours=("concepts.N.class_negative_prompt",)),
        Control(
            "Training Wizard (Person), Training Wizard (Object/Style)",
            "other names; there is Native too",
            place='"Train Person", "Train Object/Style"',
        ),
        Control(
            "Sample Image Prompt",
            "one list for all concepts; [filewords] is the caption of each concept's first picture, there of any",
            keys=("save_sample_prompt",),
            ours=("previews.prompts",),
        ),
        Control(
            "Sample Negative Prompt, Number of Samples to Generate, Sample CFG Scale, Sample Steps",
            "one for all concepts",
            keys=("save_sample_negative_prompt", "n_save_sample", "save_guidance_scale", "save_infer_steps"),
            ours=("previews.negative_prompt", "previews.count", "previews.guidance_scale", "previews.steps"),
        ),
        Control(
            "Sample Prompt Template File",
            "write its lines there, with semicolons between",
            keys=("save_sample_template",),
            ours=("previews.prompts",),
        ),
        Control(
            "Sample Seed",
            "one for all concepts; never random, so that only the training changes previews",
            keys=("sample_seed",),
            ours=("previews.seed",),
        ),
        Control(
            "Max Steps (of a concept)",
            "how often each epoch sees a concept's pictures, in place of a limit to them",
            keys=("max_steps",),
            ours=("concepts.N.repeats",),
        ),
        Control(
            "Use Concepts List, Concepts List",
            "import that file too",
            keys=("use_concepts", "concepts_path"),
            place='Model tab, "Import settings"',
        ),
        Control(
            "Disable Class Matching",
            "folder takes every picture of a class folder, whatever it was made with",
            keys=("disable_class_matching",),
            ours=("concepts.N.class_mode",),
        ),
        Control(
            "Debug Buckets, Epochs to Simulate, Batch Size to Simulate",
            "it shows every picture with its caption, crop and shape, and how many steps there are",
            place='Concepts tab, "Check the pictures"',
        ),
        Control(
            "Start Cropping, Source Path, Dest Path, Max Res, Bucket Steps, Dry Run",
            "pictures are cut as they are read, and the files stay as they are; Crop on a picture cuts it by hand",
            ours=("pictures.crop", "pictures.buckets"),
        ),
        Control("Generate Class Images", "on the Concepts tab", place='Concepts tab, "Generate Class Images"'),
        Control(
            "Save Class Captions to txt",
            "always so: a class picture's own file holds its prompt",
            keys=("save_class_txt",),
        ),
    ),
    "Performance": (
        Control(
            "Optimizer: D-Adaptation of AdamW, Adan, AdanIP, Lion, SGD",
            "prodigy, which came of it: it finds the rate too, and the learning rates are factors then",
            ours=("optimizer.name",),
        ),
        Control(
            "Optimizer: Apollo, Sophia, Tiger",
            "not here, adamw is taken; adafactor, came and the 8bit ones are those for little memory",
            ours=("optimizer.name",),
        ),
        Control("Use 8bit Adam", "adamw_8bit", keys=("use_8bit_adam",), ours=("optimizer.name",)),
        Control(
            "Full Mixed Precision",
            "for full fine-tuning, in bf16; each change is rounded at random, so that small ones are not lost",
            keys=("full_mixed_precision",),
            ours=("memory.bf16_weights",),
        ),
        Control(
            "Memory Attention",
            "sdpa, which is PyTorch's own, is the quickest on nearly every device; xformers wants that package",
            keys=("attention",),
            ours=("memory.attention",),
        ),
        Control(
            "Cache Latents",
            "pictures are always encoded once; this keeps them on the disk, too",
            keys=("cache_latents", "not_cache_latents"),
            ours=("pictures.cache_on_disk",),
        ),
        Control(
            "Set Gradients to None When Zeroing", "always so, as it takes less memory", keys=("gradient_set_to_none",)
        ),
        Control(
            "Use TensorFloat 32",
            "half precision is quicker still; that box never reached the card there",
            keys=("tf32_enable",),
            ours=("tuning.mixed_precision",),
        ),
        Control("Use CPU Only", "the engine takes the GPU that there is", keys=("use_cpu",)),
        Control(
            "Train Text Encoder",
            "a share of the run: 1 is all of it, 0 none",
            keys=("train_text_encoder",),
            ours=("tuning.text_encoder_ratio",),
        ),
        Control(
            "TENC Gradient Clip Norm",
            f"{_NOBODY}, and 0 does not clip at all here",
            keys=("tenc_grad_clip_norm",),
            ours=("optimizer.text_encoder_max_grad_norm",),
        ),
        Control(
            "Freeze CLIP Normalization Layers",
            "it froze nothing there",
            keys=("freeze_clip_normalization",),
            ours=("tuning.freeze_clip_normalization",),
        ),
        Control(
            "Min SNR Gamma",
            "with the weighting min_snr; since September 2023 nothing read it there",
            keys=("min_snr_gamma",),
            ours=("objective.min_snr_gamma", "objective.weighting"),
        ),
        Control(
            "Use DREAM, DREAM detail preservation",
            "not here: it takes a second pass through the UNet at every step, and was made for enlarging pictures",
            keys=("use_dream", "dream_detail_preservation"),
        ),
        Control(
            "Freeze Spectral Norm",
            "not here: it gives every layer another form, for training transformers from scratch",
            keys=("freeze_spectral_norm",),
        ),
        Control(
            "Strict Tokens",
            "not here: prompts are read as WebUIs read them, which could not call up what was learned by other tokens",
            keys=("strict_tokens",),
        ),
        Control(
            "Max Token Length",
            "225 is the most; what is longer than 75 tokens was always cut there",
            keys=("max_token_length",),
            ours=("tuning.max_token_length",),
        ),
        Control(
            "Noise scheduler",
            "not here: all that it offered add noise in one and the same way",
            keys=("noise_scheduler", "deis_train_scheduler"),
        ),
        Control(
            "Input perturbation (in its file alone)",
            _NOBODY,
            keys=("input_pertubation",),
            ours=("objective.input_perturbation",),
        ),
        Control("Calculate Split Loss", "always so: your pictures and the class's count apart", keys=("split_loss",)),
        Control(
            "Use EMA for prediction",
            "what is trained predicts for itself; previews show the average where it is what is saved",
            keys=("ema_predict",),
            ours=("saving.weights",),
        ),
    ),
    "Intervals and learning rate": (
        Control(
            "Save Model Frequency (Epochs)",
            "two settings: usable results, and states to go on from, of which the newest stays",
            keys=("save_embedding_every",),
            ours=("intervals.save_model_every", "intervals.save_state_every"),
        ),
        Control(
            "Save Preview(s) Frequency (Epochs)",
            "0 still makes the first and the last; previews.count 0 makes none",
            keys=("save_preview_every",),
            ours=("intervals.save_preview_every",),
        ),
        Control(
            "Learning Rate Scheduler",
            "constant_with_warmup and linear_with_warmup are constant and linear with learning.warmup, "
            "cosine_annealing is cosine with learning.minimum",
            keys=("lr_scheduler",),
            ours=("learning.scheduler",),
        ),
        Control(
            "Learning Rate Warmup Steps",
            "a share of the run, and not so many pictures",
            keys=("lr_warmup_steps",),
            ours=("learning.warmup",),
        ),
        Control(
            "Min Learning Rate",
            "a share of the rate, and not a rate",
            keys=("learning_rate_min",),
            ours=("learning.minimum",),
        ),
        Control(
            "Constant/Linear Starting Factor, Scale Position",
            "not here: a rate begins at zero and rises over a share of the run, or is there from the beginning",
            keys=("lr_factor", "lr_scale_pos"),
            ours=("learning.warmup",),
        ),
        Control("Scale Learning Rate", "not here: a rate is what it says, whatever the batch", keys=("scale_lr",)),
    ),
    "Lora": (
        Control("Use LORA", "lora, full or embedding", keys=("use_lora",), ours=("general.method",)),
        Control("Use Lora Extended", "convolutions", keys=("use_lora_extended",), ours=("lora.layers",)),
        Control(
            "Lora UNET Rank, Lora Text Encoder Rank",
            "both parts have the one rank",
            keys=("lora_unet_rank", "lora_txt_rank"),
            ours=("lora.rank",),
        ),
        Control(
            "Lora Weight (Alpha)",
            "it trained at full strength whatever this said, which is alpha equal to rank",
            keys=("lora_weight",),
            ours=("lora.alpha",),
        ),
        Control(
            "Lora Text Weight",
            "one weight for both parts, given where a LoRA is used",
            keys=("lora_txt_weight",),
            place='Generate tab, "Lora Weight"',
        ),
        Control(
            "LoRA use buggy requires grad",
            "not here: it restored a bug of that extension",
            keys=("lora_use_buggy_requires_grad",),
        ),
    ),
    "Image processing": (
        Control("Center Crop", "centre; off it was random", keys=("center_crop",), ours=("pictures.crop",)),
        Control(
            "Dynamic Image Normalization",
            "not here: a model wants pixels from -1 to 1, and with others learns other colours",
            keys=("dynamic_img_norm",),
        ),
    ),
    "Saving": (
        Control(
            "Save in .safetensors format",
            "the file's format; ckpt is for old programs",
            keys=("save_safetensors",),
            ours=("saving.checkpoint_format",),
        ),
        Control(
            "Use EMA Weights for Inference",
            "average or raw, where the average is kept",
            keys=("infer_ema",),
            ours=("saving.weights",),
        ),
        Control(
            "Save EMA Weights to Generated Models",
            "a checkpoint holds either the weights or their average, never both",
            keys=("save_ema",),
            ours=("saving.weights",),
        ),
        Control(
            "Generate a .ckpt file / lora weights when saving during training",
            "as often as this says; 0 writes the last alone",
            keys=("save_ckpt_during", "save_lora_during"),
            ours=("intervals.save_model_every",),
        ),
        Control(
            "Generate a .ckpt file / lora weights when training completes",
            'the last result is always written; of a LoRA "Export" on the Generate tab makes a checkpoint',
            keys=("save_ckpt_after", "save_lora_after"),
        ),
        Control(
            "Generate a .ckpt file / lora weights when training is canceled",
            "you choose when you end a run",
            keys=("save_ckpt_cancel", "save_lora_cancel"),
            place='"Stop and keep", "Stop and discard"',
        ),
        Control(
            "Generate lora weights for extra networks",
            "always so: a LoRA is written as WebUIs read it",
            keys=("save_lora_for_extra_net",),
        ),
        Control(
            "Save separate diffusers snapshots when saving during training",
            "a run keeps states to go on from; the second keeps older ones until it ends",
            keys=("save_state_during",),
            ours=("intervals.save_state_every", "intervals.states_kept_every"),
        ),
        Control(
            "Save separate diffusers snapshots when training completes",
            "a finished run leaves its result; to continue from it, start a new run from that file",
            keys=("save_state_after",),
        ),
        Control(
            "Save separate diffusers snapshots when training is canceled",
            "it saves a state, and the run goes on from it later",
            keys=("save_state_cancel",),
            place='"Pause"',
        ),
    ),
    "Image generation": (
        Control(
            "Image Generation Library",
            "for pictures; those of the class are drawn by the engine, with the very model that is taught",
            place='Generate tab, "Library"',
        ),
        Control(
            "Image Generation Scheduler",
            "of previews; the Generate tab has its own, and class pictures are drawn with dpm++",
            keys=("scheduler",),
            ours=("previews.scheduler",),
        ),
        Control("Generate Sample Images", "another name", place='Generate tab, "Generate"'),
        Control("Sample Prompt File", "not here: the Generate tab takes one prompt at a time", place="Generate tab"),
        Control("Swap Sample Faces, Swap Prompt, Swap Steps, Swap Batch", "not here: nothing was behind it there"),
        Control(
            "Token Merging (ToMe)",
            "not here: previews are to show what a result draws, and merging leaves some of it out",
            keys=("tomesd",),
        ),
        Control(
            "Generate Graph, Graph Smoothing Steps, Disable Logging",
            "curves are drawn while a run goes on, at no cost worth naming; this writes what other programs draw",
            keys=("graph_smoothing", "disable_logging"),
            ours=("reporting.tensorboard",),
        ),
    ),
    "Extras": (
        Control(
            "Sanity Sample Prompt",
            "one more of the prompts",
            keys=("sanity_prompt",),
            ours=("previews.prompts",),
        ),
        Control("Sanity Sample Seed", "another name", keys=("sanity_seed",), ours=("previews.seed",)),
        Control("Sanity Sample Negative Prompt", _NOBODY, ours=("previews.negative_prompt",)),
        Control("API Key", "the API asks for the WebUI's own login"),
        Control(
            "Discord Webhook, Save and Test Webhook",
            "a message at the end of a run, without pictures",
            ours=("reporting.webhook_url",),
            place='"Send a test notice"',
        ),
        Control(
            "Weights & Biases (wandb)",
            "not here: a run sends nothing to anybody; wandb can read the files that this writes",
            ours=("reporting.tensorboard",),
        ),
    ),
}


def every() -> Iterator[Control]:
    for some in CONTROLS.values():
        yield from some


BY_KEY = by_key(CONTROLS)
