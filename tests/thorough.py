"""Tests that do the same with one choice after another: which of these always run. The others do with `-m thorough`."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

_FAMILIES = ("sd1", "sd2-v", "sdxl")
_KINDS = ("lora", "dora", "loha", "lokr", "oft", "lokr in halves")
_EACH_KIND_ONCE = (*(f"{kind}-sd1" for kind in _KINDS), "lora-sdxl")

# By file and test, the rows as pytest calls them.
ALWAYS: dict[str, tuple[str, ...]] = {
    "test_adapters.py::test_a_kind_starts_at_the_model_and_learns_from_the_first_step": (
        *(f"sd1-{kind}" for kind in _KINDS[:5]),
        "sd2-lora",
        "sdxl-lora",
    ),
    "test_adapters.py::test_a_webui_makes_of_the_file_what_the_layer_computed": _EACH_KIND_ONCE,
    "test_adapters.py::test_going_on_starts_where_the_file_ends": _EACH_KIND_ONCE,
    "test_adapters.py::test_merging_the_file_draws_what_training_saw": _EACH_KIND_ONCE,
    "test_families_training.py::test_full_fine_tuning_changes_unet_and_text_and_nothing_else": (
        "sd1-safetensors",
        "sd2-v-ckpt",
        "sdxl-safetensors",
    ),
    "test_families_training.py::test_a_lora_is_written_and_draws_like_the_last_preview": _FAMILIES,
    "test_families_training.py::test_going_on_from_a_lora_file_starts_from_what_it_knows": _FAMILIES,
    "test_fetching.py::test_what_is_fetched_ahead_learns_as_what_is_there": ("cpu-lora-True", "cpu-full-False"),
    "test_golden.py::test_the_first_losses_are_as_they_were": (
        "miniature-full",
        "miniature-lora",
        "sd2-full",
        "sd2-v-lora",
        "sdxl-lora",
        "sdxl-v-full",
    ),
    "test_graph.py::test_what_is_learned_is_the_same_to_the_bit": ("changes0", "changes3"),
    "test_lora_blocks.py::test_traced_or_not_the_same_is_learned": (
        "{}",
        "{'batching.gradient_checkpointing': True, 'memory.unet_weights': 'streamed'}",
    ),
    "test_in_backward.py::test_every_optimizer_changes_the_weights_as_without_it": ("adamw_8bit", "adafactor"),
    "test_in_backward.py::test_so_with_each_kind_of_lora": ("lokr",),
    "test_live.py::test_without_a_card_the_same_is_counted": ("lora-transformer-mixed-True", "full-all-no-False"),
    "test_lora.py::test_diffusers_draws_with_our_file_what_we_draw": ("sd1-0.4", "sd2-1.0", "sdxl-0.4"),
    "test_lora_plus.py::test_with_each_optimizer_a_pause_changes_no_bit": ("adamw_8bit",),
    "test_prediction.py::test_a_run_that_paused_ends_as_one_that_did_not": ("0.5",),
    "test_inpainting.py::test_its_results_are_inpainting_models_in_each_format": ("sd2-inpainting", "sdxl-inpainting"),
    "test_embedding.py::test_a_run_that_paused_ends_as_one_that_did_not": ("changes0", "changes3"),
    "test_families_learn.py::test_a_subject_is_learned": ("sdxl",),
    "test_miniature.py::test_the_miniature_draws_what_the_prompt_says": ("sd1",),
    "test_miniature.py::test_a_plain_prompt_gives_varied_things": ("sd1",),
    "test_unet_weights.py::test_one_block_is_awake_at_a_time": ("sd1-streamed", "sdxl-nf4"),
    "test_unet_weights.py::test_streamed_weights_learn_the_same": ("sd1-convolutions", "sdxl-transformer"),
    "test_unet_weights.py::test_streamed_weights_are_changed_as_whole_ones": ("sd1, bf16", "sdxl, text"),
    "test_unet_weights.py::test_a_run_goes_on_with_weights_that_lie_elsewhere": ("sd1",),
    "test_objective_runs.py::test_a_run_goes_on_from_a_file_of_each_kind": ("lokr",),
    "test_objective_runs.py::test_pausing_changes_no_bit_with_every_option_on": ("oft",),
    "test_objective_runs.py::test_the_file_of_each_kind_draws_the_last_preview": ("dora-True",),
    "test_simulated_apple.py::test_a_run": ("sd1-full", "sd1-previews and class pictures", "sdxl-lora, bf16"),
    "test_simulated_apple.py::test_each_scheduler_draws": ("heun", "dpm++_sde"),
    "test_waits.py::test_between_reports_nobody_waits_for_the_card": (
        "full",
        "lora",
        "text",
        "a word",
        "average",
        "in backward",
        "prodigy",
        "streamed",
    ),
    "test_words.py::test_a_run_that_paused_ends_as_one_that_did_not": ("changes1",),
    "test_words.py::test_traced_steps_teach_the_very_same": ("sd1",),
    "test_validation.py::test_measuring_changes_nothing_of_what_is_learned": ("changes3",),
    "test_validation.py::test_the_best_is_shown_as_it_was_when_it_was_best": ("changes0",),
    "test_validation.py::test_a_run_that_lost_what_it_is_measured_against_goes_on_without": ("True",),
    "test_optimizers.py::test_a_pause_changes_no_bit": ("adafactor", "adamw_8bit"),
    "test_parity.py::test_it_learns_as_the_plain_way": (
        "cpu-lora, bf16, traced",
        "cpu-lora, int8",
        "cpu-full, streamed, traced",
        "cpu-full, step in backward",
    ),
    "test_resume_memory.py::test_killed_in_the_backward_pass": ("streamed", "average and text"),
    "test_sampling.py::test_which_cannot_do_zero_terminal_snr": ("dpm++", "ddim", "ddpm", "euler_a", "sa"),
    "test_simulated_card.py::test_a_run": (
        "sd1-lora",
        "sd1-traced",
        "sd1-full, bf16",
        "sd1-held out",
        "sd1-step in backward",
        "sd1-streamed, full",
        "sd1-previews and class pictures",
        "sdxl-lora",
    ),
    "test_traced.py::test_what_is_learned_is_the_same_to_the_bit": (
        "lora",
        "full",
        "bf16 weights",
        "streamed",
        "text encoders",
    ),
    "test_traced_in_backward.py::test_what_is_learned_is_the_same_to_the_bit": ("clipped", "streamed, bf16"),
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
