"""Every setting has a test that turns it and sees what it does. A new setting needs a row here."""

# ruff: noqa: E501
from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from dreambooth.core import schema
from dreambooth.core.settings import Settings
from tests.conftest import ROOT

PROOFS = {
    "general.method": "engine/test_training.py::test_full_fine_tuning_learns_the_subject",
    "general.resolution": "engine/test_options.py::test_pictures_are_cut_to_the_resolution",
    "general.seed": "engine/test_resume.py::test_pausing_at_any_step_changes_no_bit",
    "concepts.N.instance_data_dir": "engine/test_options.py::test_the_pictures_are_those_of_the_folder",
    "concepts.N.instance_prompt": "engine/test_options.py::test_the_prompt_is_what_the_pictures_are_learned_under",
    "concepts.N.class_prompt": "engine/test_class_pictures.py::test_what_is_drawn_depends_on_the_prompt_and_the_seed_alone",
    "concepts.N.instance_token": "core/test_captions.py::test_documented_tokens",
    "concepts.N.class_token": "core/test_captions.py::test_documented_tokens",
    "concepts.N.repeats": "engine/test_options.py::test_more_repeats_or_epochs_see_more_pictures",
    "concepts.N.held_out": "engine/test_validation.py::test_what_is_held_out_is_never_learned",
    "concepts.N.class_mode": "engine/test_prediction.py::test_a_run_draws_nothing_and_keeps_the_class",
    "concepts.N.class_data_dir": "engine/test_class_pictures.py::test_a_folder_of_ones_own_is_filled_up",
    "concepts.N.num_class_images_per": "core/test_presets.py::test_steps_and_class_pictures",
    "concepts.N.class_negative_prompt": "engine/test_class_pictures.py::test_everything_that_changes_a_picture_changes_its_folder",
    "concepts.N.class_guidance_scale": "engine/test_class_pictures.py::test_everything_that_changes_a_picture_changes_its_folder",
    "concepts.N.class_infer_steps": "engine/test_class_pictures.py::test_everything_that_changes_a_picture_changes_its_folder",
    "concepts.N.loss_weight": "engine/test_objective.py::test_a_concept_counts_by_its_weight",
    "captions.shuffle_tags": "engine/test_readings.py::test_how_captions_are_read_changes_what_is_learned",
    "captions.keep_tags": "core/test_captions.py::test_shuffling_keeps_every_tag_and_those_in_front",
    "captions.variants": "core/test_captions.py::test_there_are_as_many_variants_as_are_asked_for",
    "captions.dropout": "engine/test_readings.py::test_a_share_is_read_without_a_caption",
    "captions.prefix": "engine/test_readings.py::test_only_your_captions_vary",
    "captions.suffix": "engine/test_readings.py::test_how_captions_are_read_changes_what_is_learned",
    "pictures.crop": "engine/test_framing.py::test_a_smart_crop_holds_a_subject_that_the_centre_would_cut",
    "pictures.buckets": "core/test_buckets.py::test_without_buckets_every_picture_is_cut_square",
    "pictures.bucket_step": "core/test_buckets.py::test_each_setting_changes_where_a_picture_lands",
    "pictures.bucket_min_side": "core/test_buckets.py::test_each_setting_changes_where_a_picture_lands",
    "pictures.bucket_max_side": "core/test_buckets.py::test_each_setting_changes_where_a_picture_lands",
    "pictures.no_upscale": "core/test_buckets.py::test_each_setting_changes_where_a_picture_lands",
    "pictures.cache_on_disk": "engine/test_cache.py::test_a_run_keeps_latents_where_it_is_asked_to",
    "pictures.variants": "engine/test_framing.py::test_there_are_as_many_variants_as_are_asked_for",
    "pictures.hflip": "engine/test_framing.py::test_each_augmentation_changes_the_variants_but_not_the_first",
    "pictures.crop_jitter": "engine/test_framing.py::test_each_augmentation_changes_the_variants_but_not_the_first",
    "pictures.rotation": "engine/test_framing.py::test_each_augmentation_changes_the_variants_but_not_the_first",
    "pictures.brightness": "engine/test_framing.py::test_each_augmentation_changes_the_variants_but_not_the_first",
    "pictures.colour": "engine/test_framing.py::test_each_augmentation_changes_the_variants_but_not_the_first",
    "intervals.num_train_epochs": "engine/test_options.py::test_more_repeats_or_epochs_see_more_pictures",
    "intervals.max_train_steps": "core/test_budget.py::test_total_steps_take_the_place_of_epochs",
    "intervals.save_preview_every": "engine/test_options.py::test_previews_come_every_so_many_epochs",
    "intervals.save_model_every": "engine/test_options.py::test_models_are_written_on_the_way_under_names_of_their_own",
    "intervals.save_state_every": "engine/test_options.py::test_states_are_saved_every_so_many_epochs",
    "intervals.save_preview_every_steps": "engine/test_memory_options.py::test_things_are_done_every_so_many_steps",
    "intervals.save_model_every_steps": "engine/test_memory_options.py::test_things_are_done_every_so_many_steps",
    "intervals.save_state_every_steps": "engine/test_memory_options.py::test_things_are_done_every_so_many_steps",
    "intervals.validate_every": "engine/test_validation.py::test_measuring_changes_nothing_of_what_is_learned",
    "intervals.patience": "engine/test_validation.py::test_a_run_ends_when_its_patience_does",
    "intervals.results_kept": "engine/test_thinning.py::test_the_newest_the_last_and_what_a_person_asked_for_stay",
    "intervals.states_kept": "engine/test_trouble.py::test_the_states_that_are_asked_for_stay",
    "intervals.states_kept_every": "engine/test_trouble.py::test_the_states_that_are_asked_for_stay",
    "intervals.epoch_pause_frequency": "engine/test_memory_options.py::test_the_run_rests_after_so_many_epochs",
    "intervals.epoch_pause_time": "engine/test_memory_options.py::test_the_run_rests_after_so_many_epochs",
    "batching.train_batch_size": "engine/test_options.py::test_a_step_is_a_batch_or_several_added_up",
    "batching.gradient_accumulation_steps": "engine/test_options.py::test_a_step_is_a_batch_or_several_added_up",
    "batching.num_processes": "engine/test_ranks.py::test_what_breaks_another_process_is_told",
    "batching.gradient_checkpointing": "engine/test_options.py::test_checkpointing_works_out_the_blocks_again",
    "batching.class_batch_size": "engine/test_options.py::test_class_pictures_are_drawn_so_many_at_a_time",
    "learning.learning_rate": "engine/test_options.py::test_each_part_has_its_own_learning_rate",
    "learning.text_encoder_learning_rate": "engine/test_options.py::test_each_part_has_its_own_learning_rate",
    "learning.lora_learning_rate": "engine/test_families_training.py::test_going_on_from_a_lora_file_starts_from_what_it_knows",
    "learning.lora_text_encoder_learning_rate": "engine/test_families_training.py::test_going_on_from_a_lora_file_starts_from_what_it_knows",
    "learning.text_encoder_2_ratio": "engine/test_two_text_encoders.py::test_the_second_learns_at_a_multiple_of_the_first_ones_rate",
    "learning.lora_plus_ratio": "engine/test_lora_plus.py::test_the_second_matrices_learn_at_a_multiple",
    "learning.embedding_learning_rate": "engine/test_words.py::test_a_word_begins_as_the_text_that_is_given",
    "learning.scheduler": "engine/test_schedules.py::test_a_curve_is_pytorchs",
    "learning.warmup": "engine/test_schedules.py::test_warm_up_works_with_each",
    "learning.minimum": "engine/test_schedules.py::test_a_falling_rate_ends_at_its_least",
    "learning.cycles": "engine/test_schedules.py::test_cycles_and_power_do_what_they_say",
    "learning.power": "engine/test_schedules.py::test_cycles_and_power_do_what_they_say",
    "optimizer.name": "engine/test_optimizers.py::test_lion_is_the_published_algorithm",
    "optimizer.weight_decay": "engine/test_optimizers.py::test_weight_decay_pulls_with_every_optimizer",
    "optimizer.text_encoder_weight_decay": "engine/test_optimizers.py::test_the_text_encoder_has_its_own_weight_decay",
    "optimizer.max_grad_norm": "engine/test_memory_options.py::test_each_part_is_clipped_to_its_own_norm",
    "optimizer.text_encoder_max_grad_norm": "engine/test_memory_options.py::test_each_part_is_clipped_to_its_own_norm",
    "optimizer.beta1": "engine/test_optimizers.py::test_betas_and_epsilon_reach_every_optimizer_that_has_them",
    "optimizer.beta2": "engine/test_optimizers.py::test_betas_and_epsilon_reach_every_optimizer_that_has_them",
    "optimizer.epsilon": "engine/test_optimizers.py::test_betas_and_epsilon_reach_every_optimizer_that_has_them",
    "optimizer.d_coef": "engine/test_prodigy.py::test_its_coefficient_reaches_it_and_a_run_tells_how_far_it_goes",
    "tuning.train_unet": "engine/test_objective_runs.py::test_train_unet_off_leaves_the_unet_of_the_file_alone",
    "tuning.text_encoder_ratio": "engine/test_options.py::test_the_text_encoder_learns_only_when_asked",
    "tuning.text_encoder_steps": "engine/test_options.py::test_the_text_encoder_stops_at_a_step",
    "tuning.text_encoders": "engine/test_two_text_encoders.py::test_one_learns_and_the_other_stays",
    "tuning.unet_layers": "engine/test_options.py::test_only_the_layers_that_are_unfrozen_change",
    "tuning.freeze_clip_normalization": "engine/test_adapters.py::test_freezing_clip_normalization_freezes_those_layers_and_no_others",
    "tuning.max_token_length": "engine/test_options.py::test_how_prompts_are_read_changes_what_is_learned",
    "tuning.clip_skip": "engine/test_options.py::test_how_prompts_are_read_changes_what_is_learned",
    "tuning.pad_tokens": "engine/test_options.py::test_how_prompts_are_read_changes_what_is_learned",
    "tuning.mixed_precision": "engine/test_memory_options.py::test_a_precision_is_what_the_layers_compute_in",
    "tuning.use_ema": "engine/test_options.py::test_the_average_lags_behind_the_weights",
    "tuning.ema_decay": "engine/test_options.py::test_a_short_memory_of_the_average_is_nearer_to_the_weights",
    "tuning.prior_loss_weight": "engine/test_objective.py::test_the_weight_of_the_class_falls_over_the_epochs",
    "tuning.trace_steps": "engine/test_traced.py::test_a_run_is_traced_only_where_that_is_asked_for",
    "tuning.cuda_graphs": "engine/test_graph.py::test_it_is_refused_without_a_gpu",
    "tuning.deterministic": "engine/test_memory_options.py::test_deterministic_refuses_what_does_not_repeat",
    "tuning.nonfinite_steps": "engine/test_trouble.py::test_after_so_many_the_run_goes_back_with_half_the_rate",
    "objective.loss": "engine/test_objective.py::test_huber",
    "objective.huber_delta": "engine/test_objective.py::test_huber",
    "objective.huber_schedule": "engine/test_objective.py::test_huber",
    "objective.weighting": "engine/test_objective.py::test_timestep_weights_are_each_pictures_own_with_class_pictures_too",
    "objective.min_snr_gamma": "engine/test_objective.py::test_min_snr_for_v_is_over_snr_plus_one_and_not_plus_one_after",
    "objective.prior_loss_scale": "engine/test_objective.py::test_the_weight_of_the_class_falls_over_the_epochs",
    "objective.prior_loss_target": "engine/test_objective.py::test_the_weight_of_the_class_falls_over_the_epochs",
    "objective.prior_loss_weight_min": "engine/test_objective.py::test_the_weight_of_the_class_falls_over_the_epochs",
    "objective.offset_noise": "engine/test_objective.py::test_offset_noise_shifts_whole_channels_and_is_predicted",
    "objective.multires_noise_levels": "engine/test_objective.py::test_the_settings_of_multi_resolution_noise_reach_what_the_unet_sees",
    "objective.multires_noise_discount": "engine/test_objective.py::test_the_settings_of_multi_resolution_noise_reach_what_the_unet_sees",
    "objective.input_perturbation": "engine/test_objective.py::test_input_perturbation_is_seen_by_the_unet_and_not_predicted",
    "objective.timesteps": "engine/test_objective.py::test_cubic_timesteps",
    "objective.timestep_min": "engine/test_objective.py::test_timesteps_stay_within_their_range",
    "objective.timestep_max": "engine/test_objective.py::test_timesteps_stay_within_their_range",
    "objective.logit_mean": "engine/test_objective.py::test_logit_normal_timesteps",
    "objective.logit_std": "engine/test_objective.py::test_logit_normal_timesteps",
    "objective.masked": "engine/test_masks.py::test_a_run_is_taught_by_what_the_mask_leaves",
    "objective.unmasked_weight": "engine/test_objective.py::test_masks_are_not_made_for_pictures_of_the_class",
    "memory.attention": "engine/test_memory_options.py::test_sliced_attention_is_the_same_with_smaller_pieces",
    "memory.bf16_weights": "engine/test_memory_options.py::test_weights_in_bf16_take_half_and_learn",
    "memory.unet_weights": "engine/test_unet_weights.py::test_streamed_weights_learn_the_same",
    "memory.checkpointed_share": "engine/test_checkpointing.py::test_only_the_chosen_blocks_are_worked_out_again",
    "memory.step_in_backward": "engine/test_in_backward.py::test_hardly_any_gradient_is_held",
    "memory.vae_decoding": "engine/test_memory_options.py::test_previews_and_class_pictures_are_decoded_as_asked",
    "memory.on_out_of_memory": "engine/test_trouble.py::test_stop_changes_nothing_and_says_what_would_help",
    "lora.kind": "engine/test_objective_runs.py::test_the_file_of_each_kind_draws_the_last_preview",
    "lora.rank": "engine/test_adapters.py::test_the_rank_is_that_of_every_layer_and_alpha_the_files",
    "lora.alpha": "engine/test_adapters.py::test_the_rank_is_that_of_every_layer_and_alpha_the_files",
    "lora.conv_rank": "engine/test_adapters.py::test_convolutions_may_have_a_rank_and_an_alpha_of_their_own",
    "lora.conv_alpha": "engine/test_adapters.py::test_convolutions_may_have_a_rank_and_an_alpha_of_their_own",
    "lora.dropout": "engine/test_adapters.py::test_dropout_acts_in_training_and_not_in_drawing",
    "lora.layers": "engine/test_options.py::test_a_lora_has_the_layers_that_are_chosen",
    "lora.blocks": "engine/test_lora_blocks.py::test_a_run_trains_these_and_writes_them",
    "lora.lokr_factor": "engine/test_adapters.py::test_the_factor_is_the_first_ones_sides",
    "lora.max_norm": "engine/test_max_norm.py::test_no_layer_adds_more_than_it_may",
    "lora.start_file": "engine/test_families_training.py::test_going_on_from_a_lora_file_starts_from_what_it_knows",
    "embedding.enabled": "engine/test_words.py::test_a_run_teaches_the_word_and_writes_it_twice",
    "embedding.vectors": "engine/test_words.py::test_a_run_teaches_the_word_and_writes_it_twice",
    "embedding.initial_text": "engine/test_words.py::test_a_word_begins_as_the_text_that_is_given",
    "embedding.start_file": "engine/test_embedding.py::test_a_run_goes_on_from_an_embedding_of_any_trainer",
    "embedding.ratio": "engine/test_words.py::test_the_word_rests_after_its_share_of_the_run",
    "imagic.enabled": "engine/test_imagic.py::test_first_the_text_moves_and_then_the_model_with_the_text_held_still",
    "imagic.embedding_steps": "engine/test_imagic.py::test_the_model_is_trained_on_the_fitted_text",
    "imagic.embedding_learning_rate": "engine/test_imagic.py::test_the_embedding_is_moved_as_adam_moves_it",
    "previews.prompts": "engine/test_readings.py::test_previews_show_what_the_first_picture_is_read_with",
    "previews.negative_prompt": "engine/test_sampling.py::test_previews_have_their_own_sampling",
    "previews.count": "engine/test_memory_options.py::test_previews_and_class_pictures_are_decoded_as_asked",
    "previews.seed": "engine/test_sampling.py::test_previews_have_their_own_sampling",
    "previews.guidance_scale": "engine/test_sampling.py::test_previews_have_their_own_sampling",
    "previews.steps": "engine/test_sampling.py::test_previews_have_their_own_sampling",
    "previews.scheduler": "engine/test_sampling.py::test_previews_have_their_own_sampling",
    "previews.width": "engine/test_sampling.py::test_previews_have_their_own_sampling",
    "previews.height": "engine/test_sampling.py::test_previews_have_their_own_sampling",
    "saving.custom_model_name": "engine/test_options.py::test_a_name_of_ones_own",
    "saving.use_subdirectory": "engine/test_options.py::test_a_folder_of_the_models_own",
    "saving.half_model": "engine/test_options.py::test_results_are_written_in_half_or_whole",
    "saving.checkpoint_format": "engine/test_families_training.py::test_full_fine_tuning_changes_unet_and_text_and_nothing_else",
    "saving.keep_best": "engine/test_validation.py::test_the_best_is_not_kept_where_that_is_not_wanted",
    "saving.weights": "engine/test_memory_options.py::test_the_average_or_the_weights_are_saved",
    "reporting.tensorboard": "engine/test_reporting.py::test_a_run_writes_what_tensorboard_reads",
    "reporting.webhook_url": "engine/test_reporting.py::test_the_end_is_told_and_the_address_shown_to_nobody",
}  # fmt: skip


def test_every_setting_has_a_row_and_every_row_a_setting() -> None:
    known = {leaf.key for leaf in schema.leaves(Settings)}
    assert known - PROOFS.keys() == set(), "these settings have no proof"
    assert PROOFS.keys() - known == set(), "these are no settings any more"


@pytest.mark.parametrize("file", sorted({proof.split("::")[0] for proof in PROOFS.values()}))
def test_the_tests_of_the_rows_exist(file: str) -> None:
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    there = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    wanted = {proof.split("::")[1] for proof in PROOFS.values() if proof.startswith(f"{file}::")}
    assert wanted - there == set()


@pytest.mark.rows
@pytest.mark.parametrize("key", PROOFS)
def test_a_rows_test_fails_where_the_setting_is_ignored(key: str) -> None:
    ended = subprocess.run([sys.executable, "-m", "tests.engine.nailed", key], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout
