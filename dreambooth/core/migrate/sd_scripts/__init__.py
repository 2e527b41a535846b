"""The arguments of kohya's scripts (sd-scripts), of a command or a --config_file, and files of their page (kohya_ss).

Every key is told of: taken, changed, or left out with the reason (`controls.py`). The page's own keys are made
arguments first (`page.py`), and keep their names in the report.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dreambooth.core.migrate.command import Command
from dreambooth.core.migrate.disk import Disk
from dreambooth.core.migrate.reading import Reading
from dreambooth.core.migrate.report import Migration
from dreambooth.core.migrate.sd_scripts import of_data, of_network, of_results, of_training, page
from dreambooth.core.migrate.sd_scripts.controls import BY_KEY

_OF_LORA = ("train_network", "sdxl_train_network")
SCRIPTS = (*_OF_LORA, "train_db", "fine_tune", "sdxl_train", "train_textual_inversion", "sdxl_train_textual_inversion")
SAME = {
    "train_batch_size": "batching.train_batch_size",
    "gradient_accumulation_steps": "batching.gradient_accumulation_steps",
    "gradient_checkpointing": "batching.gradient_checkpointing",
    "seed": "general.seed",
    "max_token_length": "tuning.max_token_length",
    "mixed_precision": "tuning.mixed_precision",
    "ip_noise_gamma": "objective.input_perturbation",
    "min_timestep": "objective.timestep_min",
    "save_every_n_epochs": "intervals.save_model_every",
    "sample_every_n_epochs": "intervals.save_preview_every",
    "output_name": "saving.custom_model_name",
}
_SECRET = {"wandb_api_key", "huggingface_token"}
_OTHER_FAMILIES = ("flux1_", "sd3_", "hunyuan_", "anima_", "lumina_")
_OF_OTHER_FAMILIES = {
    "model_type", "ae", "clip_l", "clip_g", "t5xxl", "t5xxl_lr", "discrete_flow_shift", "model_prediction_type",
    "timestep_sampling", "split_mode", "train_blocks", "t5xxl_max_token_length", "enable_all_linear",
    "guidance_scale", "mem_eff_save", "apply_t5_attn_mask", "split_qkv", "train_t5xxl", "single_blocks_to_swap",
    "double_blocks_to_swap", "show_timesteps", "show_timesteps_resolution", "img_attn_dim", "img_mlp_dim",
    "img_mod_dim", "single_dim", "txt_attn_dim", "txt_mlp_dim", "txt_mod_dim", "single_mod_dim", "in_dims",
    "train_double_block_indices", "train_single_block_indices", "clip_g_dropout_rate", "logit_mean", "logit_std",
    "mode_scale", "pos_emb_random_crop_rate", "save_clip", "save_t5xxl", "t5xxl_device", "t5xxl_dtype",
    "weighting_scheme", "flux_fused_backward_pass",
}  # fmt: skip
_OWN = {"model_list"}
KNOWN = BY_KEY.keys() | SAME.keys()
OF_PAGE = {"LoRA_type", "max_resolution", "lr_warmup", "caption_extension", "max_data_loader_n_workers", "model_list"}


def config_file(theirs: Mapping[str, Any], disk: Disk) -> Migration:
    """The settings of a --config_file, whose sections say nothing."""
    return _arguments(flat(theirs), {}, disk, whole=True)


def command_line(theirs: Command, disk: Disk) -> Migration:
    """The settings of a command that starts one of SCRIPTS."""
    module = {"network_module": "networks.lora"} if theirs.script in _OF_LORA else {}
    migration = _arguments({**module, **theirs.arguments}, {}, disk, whole=True)
    theirs.report_unread(migration)
    return migration


def page_file(theirs: Mapping[str, Any], disk: Disk) -> Migration:
    """The settings of a file of kohya_ss, which presets do not say all of."""
    return _arguments(*page.arguments(theirs), disk, whole=False)


def flat(theirs: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in theirs.items():
        found |= value if isinstance(value, Mapping) else {key: value}
    return found


def _arguments(theirs: Mapping[str, Any], names: Mapping[str, str], disk: Disk, *, whole: bool) -> Migration:
    """`whole`: what is not said is what the scripts take for it."""
    values, names = page.with_parts(theirs, names)
    read = Reading(values, BY_KEY, Migration(), names)
    off = {key for key in values if key.startswith(_OTHER_FAMILIES) or key in _OF_OTHER_FAMILIES}
    off -= BY_KEY.keys()
    of_data.take(read, disk, whole=whole)
    method = of_network.take(read, disk, whole=whole)
    read.same(_meant(read))
    of_training.take(read, method, disk, whole=whole)
    of_results.take(read, disk)
    read.rest(_OWN, _SECRET, off | of_training.without_meaning(read))
    return read.into


def _meant(read: Reading) -> dict[str, str]:
    """Those of SAME that say something: 0 is a number for some, and "none" or "at random" for others."""
    off = {"seed", "ip_noise_gamma", "max_token_length", "save_every_n_epochs"}
    return {key: ours for key, ours in SAME.items() if key not in off or read.is_given(key)}
