"""Tests that do the same with one choice after another: which of these always run. The others do with `-m thorough`."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

_FAMILIES = ("sd1", "sdxl")
_KINDS = ("lora", "dora", "loha", "lokr", "oft")
_EACH_KIND_ONCE = (*(f"{kind}-sd1" for kind in _KINDS), "lokr in halves-sd1", "dora of two ranks-sd1", "lora-sdxl")

# By file and test, the rows as pytest calls them.
ALWAYS: dict[str, tuple[str, ...]] = {
    "test_adapters.py::test_a_kind_starts_at_the_model_and_learns_from_the_first_step": (
        *(f"sd1-{kind}" for kind in _KINDS),
        "sd2-lora",
        "sdxl-lora",
    ),
    "test_adapters.py::test_a_webui_makes_of_the_file_what_the_layer_computed": _EACH_KIND_ONCE,
    "test_adapters.py::test_convolutions_may_have_a_rank_and_an_alpha_of_their_own": (
        *(f"sd1-{kind}" for kind in _KINDS),
        "sdxl-lora",
    ),
    "test_adapters.py::test_going_on_starts_where_the_file_ends": _EACH_KIND_ONCE,
    "test_adapters.py::test_merging_the_file_draws_what_training_saw": _EACH_KIND_ONCE,
    "test_families_training.py::test_full_fine_tuning_changes_unet_and_text_and_nothing_else": (
        "sd1-safetensors",
        "sdxl-safetensors",
    ),
    "test_families_training.py::test_a_lora_is_written_and_draws_like_the_last_preview": _FAMILIES,
    "test_families_training.py::test_going_on_from_a_lora_file_starts_from_what_it_knows": _FAMILIES,
    "test_weight_prefetch.py::test_what_is_fetched_ahead_learns_as_what_is_there": ("cpu-lora-True", "cpu-full-False"),
    "test_golden.py::test_the_first_losses_are_as_they_were": (
        "miniature-full",
        "miniature-lora",
        "sd2-v-lora",
        "sdxl-v-full",
    ),
    "test_graph.py::test_what_is_learned_is_the_same_to_the_bit": ("changes3",),
    "test_lora_blocks.py::test_traced_or_not_the_same_is_learned": ("{}",),
    "test_fused_backward.py::test_every_optimizer_changes_the_weights_as_without_it": ("adamw_8bit", "adafactor"),
    "test_fused_backward.py::test_so_with_each_kind_of_lora": ("lokr",),
    "test_live_tensors.py::test_without_a_card_the_same_is_counted": ("lora-transformer-mixed-True",),
    "test_lora.py::test_diffusers_draws_with_our_file_what_we_draw": ("sdxl-0.4",),
    "test_lora_plus.py::test_with_each_optimizer_a_pause_changes_no_bit": ("adamw_8bit",),
    "test_prediction.py::test_a_run_that_paused_ends_as_one_that_did_not": ("0.5",),
    "test_inpainting.py::test_its_results_are_inpainting_models_in_each_format": ("sd2-inpainting", "sdxl-inpainting"),
    "test_embedding.py::test_a_run_that_paused_ends_as_one_that_did_not": ("changes0",),
    "test_families_learn.py::test_a_subject_is_learned": ("sd1-lora",),
    "test_miniature.py::test_the_miniature_draws_what_the_prompt_says": ("sd1",),
    "test_miniature.py::test_a_plain_prompt_gives_varied_things": ("sd1",),
    "test_unet_weights.py::test_one_block_is_awake_at_a_time": ("sd1-streamed", "sdxl-nf4"),
    "test_unet_weights.py::test_streamed_weights_learn_the_same": ("sd1-convolutions",),
    "test_unet_weights.py::test_streamed_weights_are_changed_as_whole_ones": ("sd1, bf16",),
    "test_unet_weights.py::test_a_run_goes_on_with_weights_that_lie_elsewhere": ("sd1",),
    "test_objective_runs.py::test_a_run_goes_on_from_a_file_of_each_kind": ("lokr",),
    "test_objective_runs.py::test_pausing_changes_no_bit_with_every_option_on": ("oft",),
    "test_objective_runs.py::test_the_file_of_each_kind_draws_the_last_preview": ("dora-True",),
    "test_simulated_apple.py::test_a_run": ("sd1-full", "sd1-previews and class pictures"),
    "test_simulated_apple.py::test_each_scheduler_draws": ("heun", "dpm++_sde"),
    "test_waits.py::test_between_reports_nobody_waits_for_the_card": (
        "full",
        "lora",
        "a word",
        "in backward",
        "streamed",
    ),
    "test_words.py::test_a_run_that_paused_ends_as_one_that_did_not": ("changes1",),
    "test_validation.py::test_measuring_changes_nothing_of_what_is_learned": ("changes3",),
    "test_validation.py::test_the_best_is_shown_as_it_was_when_it_was_best": ("changes0",),
    "test_validation.py::test_a_run_that_lost_what_it_is_measured_against_goes_on_without": ("True",),
    "test_optimizers.py::test_a_pause_changes_no_bit": ("adafactor",),
    "test_parity.py::test_it_learns_as_the_plain_way": ("cpu-lora, bf16, traced", "cpu-full, step in backward"),
    "test_resume_memory.py::test_killed_in_the_backward_pass": ("streamed",),
    "test_sampling.py::test_which_cannot_do_zero_terminal_snr": ("dpm++", "euler_a", "sa"),
    "test_simulated_card.py::test_a_run": (
        "sd1-lora",
        "sd1-step in backward",
        "sd1-streamed, full",
        "sd1-previews and class pictures",
        "sdxl-lora",
    ),
    "test_traced_step.py::test_what_is_learned_is_the_same_to_the_bit": ("lora", "full", "streamed"),
    "test_traced_fused_backward.py::test_what_is_learned_is_the_same_to_the_bit": ("clipped",),
    "test_families_training.py::test_the_text_encoders_rest_where_not_asked": ("sd1", "sdxl"),
    "test_lora_plus.py::test_the_second_matrices_learn_at_a_multiple": ("lora",),
    "test_embedding.py::test_traced_steps_teach_the_very_same": ("sd1",),
    "test_resume.py::test_pausing_at_any_step_changes_no_bit": ("lora",),
    "test_data_parallel.py::test_two_processes_learn_what_one_learns": ("full, in bf16",),
    "test_sampling.py::test_a_scheduler_draws": ("ddim", "ddpm", "euler_a", "heun", "dpm++_karras", "pndm"),
    "test_traced_fused_backward.py::test_a_program_that_gives_something_else_has_changed_nothing": ("an error",),
    "test_weight_prefetch.py::test_the_same_is_learned_whenever_it_is_copied": ("Early-trained",),
    "test_weight_prefetch.py::test_so_in_a_step_that_is_done_again": ("NoFollow",),
    "test_weight_prefetch.py::test_a_wait_that_is_left_out_shows": ("NoFollow",),
    "test_imagic.py::test_a_pause_changes_no_bit_in_either_part": ("full",),
    "test_imagic.py::test_previews_and_results_are_made_when_asked_for_and_change_nothing": ("model",),
    "test_recovery.py::test_the_states_that_are_asked_for_stay": ("kept2-there2",),
    "test_graph.py::test_where_it_cannot_be_captured_or_is_wrong_the_run_goes_on_without": ("capture",),
    "test_lycoris.py::test_a_step_in_bf16_is_as_near_to_full_precision_as_pefts_with_autocast": ("loha",),
    "test_lycoris.py::test_casting_at_once_and_checkpointing_change_no_bit": ("lokr",),
    "test_forecast.py::test_the_values_of_each_kind_of_lora_are_counted": ("dora-40", "loha-2", "lokr-40", "oft-2"),
    "test_adapters.py::test_pefts_merged_weight_is_what_the_file_says": _EACH_KIND_ONCE,
    "test_same_as_cpu.py::test_previews_are_the_same": ("cpu-no-2",),
    "test_same_as_cpu.py::test_a_training_is_the_same": ("cpu-full", "cpu-lora"),
    "test_families.py::test_it_draws_what_diffusers_draws": ("sd1-folder", "sd2-v-file", "sdxl-file"),
    "test_families.py::test_diffusers_to_original_to_diffusers_changes_no_bit": (
        "sd1-dtype1-.ckpt",
        "sd2-dtype0-.safetensors",
        "sdxl-dtype0-.safetensors",
    ),
    "test_families.py::test_every_precision_is_read": ("sd1-dtype0-fp16", "sdxl-dtype1-bf16"),
    "test_families.py::test_another_files_vae_takes_the_place_of_the_models": tuple(
        f"sd1-{kind}" for kind in ("whole file", "own file", "diffusers file", "part of a folder")
    ),
    "test_prediction.py::test_what_is_kept_to_is_what_the_model_says_without_what_was_learned": (
        *(f"sd1-{kind}" for kind in ("lora-0.0", "lora-1.0", "dora-1.0", "loha-1.0", "lokr-0.0", "oft-1.0")),
        "sdxl-convolutions-0.0",
    ),
    "test_lora_blocks.py::test_the_trained_values_are_counted": (
        "sd1-out-convolutions",
        "sd2-IN04-OUT03-attention",
        "sdxl-MID-transformer",
    ),
    "test_export_of_states.py::test_it_is_what_the_run_would_have_written": (
        "the whole model, its average",
        "a lora, its average in half",
        "lokr",
    ),
    "test_traced_step.py::test_a_program_that_gives_something_else_is_not_used": ("a gradient",),
    "test_traced_step.py::test_what_cannot_be_traced_or_is_too_short_is_done_as_ever": ("changes1",),
    "test_validation.py::test_the_measure_is_how_much_better_the_picture_is_predicted": ("sd1",),
    "test_embedding.py::test_diffusers_reads_it_as_we_do": ("sd1-.pt", "sdxl-.safetensors"),
    "test_export.py::test_its_layers_are_those_of_a_trained_lora": ("sdxl",),
    "test_drawn_together.py::test_without_a_card_the_same_is_counted": ("half/autocast", "no"),
    "test_options.py::test_a_folder_of_the_models_own": ("lora",),
    "test_imagic.py::test_first_the_text_moves_and_then_the_model_with_the_text_held_still": ("sdxl",),
    "test_lora.py::test_going_on_starts_where_the_file_ends": ("sd1",),
    "test_inpainting.py::test_every_kind_of_run": ("lora", "masked", "streamed", "previews"),
    "test_lora_plus.py::test_so_in_the_backward_pass": ("more0",),
    "test_words.py::test_diffusers_reads_the_lora_and_the_embedding_as_we_do": ("sd1",),
}


def mark(items: Iterable[pytest.Item]) -> None:
    """Marks the other rows. Raises pytest.UsageError for a row that is named and is not there."""
    rows: dict[str, dict[str, pytest.Item]] = {}
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            name = f"{item.path.name}::{item.originalname}"
            rows.setdefault(name, {})[item.callspec.id] = item
    for name, always in ALWAYS.items():
        there = rows.get(name, {})
        if len(there) > len(always) and (gone := set(always) - set(there)):  # fewer: a person named some
            raise pytest.UsageError(f"tests/thorough.py: {name} has no row {', '.join(sorted(gone))}")
        for row, item in there.items():
            if row not in always:
                item.add_marker("thorough")
