"""What becomes of the predecessor's settings: realistic files of each time, and a report of every key."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreambooth.core import schema, settings
from dreambooth.core.migrate import predecessor, table
from dreambooth.core.migrate.control import UNKNOWN, Control
from dreambooth.core.migrate.predecessor import controls, of_concepts
from dreambooth.core.migrate.report import Seen
from dreambooth.core.settings import Settings
from tests.conftest import ROOT
from tests.core.migrations import fates, flat, left, look

CONCEPT_OF_2023_03 = {
    "class_data_dir": "", "class_guidance_scale": 7.5, "class_infer_steps": 40,
    "class_negative_prompt": "blurry", "class_prompt": "photo of a dog", "class_token": "",
    "instance_data_dir": "/photos/anna", "instance_prompt": "photo of sks dog", "instance_token": "",
    "is_valid": True, "n_save_sample": 2, "num_class_images_per": 5, "sample_seed": -1, "save_guidance_scale": 7.5,
    "save_infer_steps": 20, "save_sample_negative_prompt": "", "save_sample_prompt": "photo of sks dog on a beach",
    "save_sample_template": "",
}  # fmt: skip
CONFIG_OF_2023_03 = {
    "adamw_weight_decay": 0.01, "adaptation_beta1": 0, "attention": "xformers", "cache_latents": True,
    "clip_skip": 1, "concepts_list": [CONCEPT_OF_2023_03], "concepts_path": "", "custom_model_name": "",
    "deterministic": False, "ema_predict": False, "epoch": 0, "epoch_pause_frequency": 0, "epoch_pause_time": 0,
    "freeze_clip_normalization": False, "gradient_accumulation_steps": 2, "gradient_checkpointing": True,
    "gradient_set_to_none": True, "graph_smoothing": 50, "half_model": False, "hflip": False, "has_ema": False,
    "infer_ema": False, "initial_revision": 0, "learning_rate": 1.75e-06, "learning_rate_min": 1e-06,
    "lifetime_revision": 0, "lora_learning_rate": 0.0001, "lora_model_name": "", "lora_txt_learning_rate": 5e-05,
    "lora_txt_rank": 4, "lora_txt_weight": 1.0, "lora_unet_rank": 4, "lora_weight": 1.0, "lr_cycles": 1,
    "lr_factor": 0.5, "lr_power": 1, "lr_scale_pos": 0.5, "lr_scheduler": "constant_with_warmup",
    "lr_warmup_steps": 75, "max_token_length": 75, "mixed_precision": "fp16", "model_dir": "/models/anna",
    "model_name": "anna", "model_path": "", "noise_scheduler": "DDPM", "num_train_epochs": 150, "offset_noise": 0,
    "optimizer": "8bit AdamW", "pad_tokens": True, "pretrained_model_name_or_path": "/models/anna/working",
    "prior_loss_scale": False, "prior_loss_target": 100, "prior_loss_weight": 0.75, "prior_loss_weight_min": 0.1,
    "resolution": 512, "revision": 0, "sample_batch_size": 2, "sanity_prompt": "photo of a dog", "sanity_seed": 7,
    "save_ckpt_after": True, "save_ckpt_during": True, "save_embedding_every": 25, "save_preview_every": 5,
    "scheduler": "ddim", "shuffle_tags": True, "snapshot": "", "split_loss": True, "src": "v1-5.ckpt",
    "stop_text_encoder": 0.7, "strict_tokens": False, "tf32_enable": True, "train_batch_size": 2,
    "train_imagic": False, "train_unet": True, "use_ema": False, "use_lora": False, "use_subdir": True, "v2": False,
}  # fmt: skip
CONFIG_OF_2025 = {
    "concepts_list": [{**CONCEPT_OF_2023_03, "instance_prompt": "[filewords]", "instance_token": "sks",
                       "class_token": "dog", "class_prompt": "[filewords]", "save_sample_prompt": "[filewords]"}],
    "weight_decay": 0.02, "learning_rate": 2e-06, "txt_learning_rate": 1e-06, "use_lora": True, "lora_unet_rank": 8,
    "lora_weight": 0.8, "lora_learning_rate": 2e-4, "lora_txt_learning_rate": 3e-5, "num_train_epochs": 100,
    "lr_scheduler": "rex", "lr_warmup_steps": 0, "model_type": "v1x", "hflip": True, "resolution": 700,
    "save_lora_during": False, "save_embedding_every": 10, "stop_text_encoder": 1.0, "mixed_precision": "bf16",
    "full_mixed_precision": True, "train_unet": False, "clip_skip": 2,
}  # fmt: skip
CONCEPT_OF_2022 = {
    "instance_data_dir": "/photos/anna", "instance_prompt": "photo of sks dog", "class_prompt": "photo of a dog",
    "class_data_dir": "/photos/dogs", "num_class_images": 200, "max_steps": 900, "file_prompt_contents": "",
    "save_sample_template": "/t.txt", "sample_seed": -1,
}  # fmt: skip
CONFIG_OF_2022 = {
    "concepts_list": [CONCEPT_OF_2022], "adam_beta1": 0.8, "adam_beta2": 0.99, "adam_epsilon": 1e-7,
    "adam_weight_decay": 0.02, "center_crop": False, "max_grad_norm": 2.0, "max_train_steps": 1200,
    "not_cache_latents": True, "num_train_epochs": 1, "scale_lr": True, "train_text_encoder": True,
    "use_8bit_adam": True, "use_cpu": True, "save_class_txt": True, "attention": "flash_attention", "loaded": True,
    "save_embedding_every": 500, "save_preview_every": 0, "learning_rate": 1e-6, "model_name": "anna",
}  # fmt: skip
EVERYTHING_ON = {
    **CONFIG_OF_2025, "disable_class_matching": True, "disable_logging": True, "dynamic_img_norm": True,
    "ema_predict": True, "freeze_spectral_norm": True, "infer_ema": True, "input_pertubation": True,
    "lora_model_name": "anna_500.safetensors", "lora_txt_rank": 4, "lora_use_buggy_requires_grad": True,
    "max_token_length": 300, "min_snr_gamma": 4.0, "noise_scheduler": "DEIS", "save_ckpt_cancel": True,
    "pretrained_vae_name_or_path": "/vae.safetensors", "save_ckpt_after": True, "save_ckpt_during": True,
    "save_ema": True, "save_lora_after": True, "save_lora_cancel": True, "save_lora_for_extra_net": True,
    "save_safetensors": True, "save_state_after": True, "save_state_cancel": True, "save_state_during": True,
    "scheduler": "UniPCMultistep", "shared_diffusers_path": "/shared", "snapshot": "500", "split_loss": False,
    "strict_tokens": True, "tenc_grad_clip_norm": 0, "tomesd": 0.5, "train_unfrozen": True, "use_concepts": True,
    "concepts_path": "/c.json", "use_dream": True, "dream_detail_preservation": 0.5, "use_ema": True,
    "use_lora_extended": True, "use_shared_src": True, "lr_factor": 0.5, "lr_warmup_steps": 75,
    "deis_train_scheduler": True,
}  # fmt: skip
# What a setting has a meaning with.
ALONE: dict[str, dict[str, Any]] = {
    "lr_factor": {"lr_scheduler": "constant"},
    "lr_scale_pos": {"lr_scheduler": "cosine_annealing"},
    "lr_warmup_steps": {"lr_scheduler": "cosine", "concepts_list": [CONCEPT_OF_2023_03]},
    "learning_rate_min": {"lr_scheduler": "cosine_annealing", "learning_rate": 2e-6},
    "infer_ema": {"use_ema": True},
    "save_ckpt_during": {"save_embedding_every": 5},
    "save_lora_during": {"save_embedding_every": 5},
}


def test_the_predecessors_config_of_its_guides() -> None:
    migration = predecessor.config(CONFIG_OF_2023_03, look)
    ours = flat(migration)
    assert ours["general.method"] == "full"
    assert (ours["concepts.0.instance_data_dir"], ours["concepts.0.class_prompt"]) == ("/photos/anna", "photo of a dog")
    assert (ours["concepts.0.num_class_images_per"], ours["concepts.0.class_infer_steps"]) == (5, 40)
    assert (ours["intervals.num_train_epochs"], ours["intervals.save_model_every"]) == (150, 25)
    assert (ours["learning.learning_rate"], ours["learning.text_encoder_learning_rate"]) == (1.75e-6, 1.75e-6)
    assert ours["learning.warmup"] == 75 / (150 * 10)
    assert (ours["tuning.text_encoder_ratio"], ours["captions.shuffle_tags"]) == (0.7, True)
    assert ours["previews.prompts"] == "photo of sks dog on a beach; photo of a dog"
    assert (ours["previews.count"], ours["previews.seed"]) == (2, 7)
    assert ours["saving.use_subdirectory"] is True
    assert "tf32_enable" in left(migration)
    assert not {"hflip", "offset_noise", "model_dir", "revision"} & left(migration)


def test_the_predecessors_last_config() -> None:
    migration = predecessor.config(CONFIG_OF_2025, look)
    ours = flat(migration)
    assert (ours["general.method"], ours["lora.rank"], ours["lora.alpha"]) == ("lora", 8, 8.0)
    assert (ours["learning.lora_learning_rate"], ours["learning.text_encoder_learning_rate"]) == (2e-4, 1e-6)
    assert (ours["concepts.0.instance_token"], ours["concepts.0.class_token"]) == ("sks", "dog")
    assert (ours["intervals.save_model_every"], ours["intervals.save_state_every"]) == (0, 10)
    assert (ours["general.resolution"], ours["optimizer.weight_decay"]) == (704, 0.02)
    assert (ours["tuning.clip_skip"], ours["pictures.hflip"]) == (2, True)
    assert "clip_skip" in left(predecessor.config({**CONFIG_OF_2025, "model_type": "SDXL"}, look))
    assert ours["previews.prompts"] == "[filewords]"
    assert (ours["tuning.train_unet"], ours["tuning.text_encoder_ratio"]) == (False, 1.0)
    changed = {line.theirs for line in migration.lines if line.fate == "changed"}
    assert {"resolution", "lora_weight", "lr_scheduler"} <= changed


def test_what_the_predecessor_minimised() -> None:
    theirs = {"prior_loss_scale": True, "prior_loss_target": 60, "prior_loss_weight_min": 0.2, "offset_noise": -0.1}
    more = {"freeze_clip_normalization": True, "train_unet": False, "stop_text_encoder": 0.5}
    migration = predecessor.config({**CONFIG_OF_2023_03, **theirs, **more}, look)
    ours = flat(migration)
    assert (ours["objective.prior_loss_scale"], ours["objective.prior_loss_target"]) == (True, 60)
    assert (ours["objective.prior_loss_weight_min"], ours["objective.offset_noise"]) == (0.2, -0.1)
    assert (ours["tuning.freeze_clip_normalization"], ours["tuning.text_encoder_ratio"]) == (True, 1.0)
    told = {line.theirs for line in migration.lines if line.fate == "changed"}
    assert {"freeze_clip_normalization", "stop_text_encoder"} <= told
    upside_down = predecessor.config({**theirs, "prior_loss_weight_min": 1}, look)
    assert "prior_loss_scale" in left(upside_down)
    assert not flat(upside_down)["objective.prior_loss_scale"]


def test_imagic_comes_along_without_what_does_not_go_with_it() -> None:
    assert not flat(predecessor.config(CONFIG_OF_2023_03, look))["imagic.enabled"]
    migration = predecessor.config({**CONFIG_OF_2023_03, "train_imagic": True}, look)
    ours = flat(migration)  # it is refused where something does not go together
    assert (ours["imagic.enabled"], ours["tuning.text_encoder_ratio"], ours["captions.shuffle_tags"]) == (
        True,
        0,
        False,
    )
    assert ours["concepts.0.class_mode"] == "off"
    told = {line.theirs for line in migration.lines if line.fate == "changed"}
    assert {"stop_text_encoder", "shuffle_tags", "concept 0: num_class_images_per"} <= told
    assert settings.parse(predecessor.config({"train_imagic": True}, look).settings).imagic.enabled


def test_a_concepts_list_says_how_many_class_pictures_in_several_ways() -> None:
    one = {"instance_prompt": "photo of zwx dog", "class_prompt": "photo of a dog", "instance_data_dir": "/data/zwx"}
    full = {**one, "class_data_dir": "/data/dog"}
    migration = predecessor.concepts([full, {**full, "num_class_images": 55}, one, {"instance_data_dir": ""}], look)
    ours = flat(migration)
    assert ours["concepts.0.class_mode"] == "folder"
    assert ours["concepts.1.num_class_images_per"] == 6
    assert (ours["concepts.2.class_mode"], ours["concepts.2.num_class_images_per"]) == ("fill", 0)
    assert "concept 0: num_class_images" in left(predecessor.concepts([full], lambda _: Seen()))
    assert "concepts_list" in left(migration)


def test_what_cannot_be_turned_off_here_is_told() -> None:
    migration = predecessor.config({**CONFIG_OF_2023_03, "cache_latents": False}, look)
    [told] = [line for line in migration.lines if line.theirs == "cache_latents"]
    assert told.value is False and "pictures are always encoded once" in told.why


def test_every_key_of_a_config_is_known_or_told() -> None:
    migration = predecessor.config({**CONFIG_OF_2023_03, "brand_new_option": 3}, look)
    assert "brand_new_option" in left(migration)
    for theirs in (CONFIG_OF_2023_03, CONFIG_OF_2025, CONFIG_OF_2022, EVERYTHING_ON):
        migration = predecessor.config(theirs, look)
        assert theirs.keys() - {"concepts_list"} <= migration.reported_keys()
        assert not [line for line in migration.lines if line.why == UNKNOWN]
        names = [one for line in migration.lines if line.fate == "left out" for one in line.theirs.split(", ")]
        assert len(names) == len(set(names))


KEYS = st.sampled_from([*CONFIG_OF_2023_03, *CONFIG_OF_2025])
CONCEPT_KEYS = st.sampled_from([*CONCEPT_OF_2023_03, "num_class_images"])
ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.lists(st.integers())


@given(st.dictionaries(KEYS, ANYTHING, max_size=20), st.lists(st.dictionaries(CONCEPT_KEYS, ANYTHING), max_size=3))
def test_no_config_ends_in_a_traceback(theirs: dict[str, Any], listed: list[dict[str, Any]]) -> None:
    migration = predecessor.config({**theirs, "concepts_list": listed}, look)
    for line in migration.lines:
        assert line.fate == "left out" or line.ours in migration.settings


def test_every_target_is_a_setting() -> None:
    known = {leaf.key for leaf in schema.leaves(Settings)}
    concept = {f"concepts.N.{ours}" for ours in of_concepts.SAME.values()}
    targets = {*predecessor.SAME.values(), *of_concepts.SAMPLES.values(), *concept}
    assert targets <= known


def test_optimizer_schedule_and_rests_come_along() -> None:
    theirs = {
        "concepts_list": [],
        "optimizer": "Paged 8bit AdamW",
        "lr_scheduler": "cosine_annealing",
        "learning_rate": 4e-6,
        "learning_rate_min": 1e-6,
        "epoch_pause_frequency": 10,
        "epoch_pause_time": 60,
        "tenc_grad_clip_norm": 2.0,
        "deterministic": True,
    }
    ours = settings.parse(predecessor.config(theirs, look).settings)
    assert (ours.optimizer.name, ours.optimizer.text_encoder_max_grad_norm) == ("paged_adamw_8bit", 2.0)
    assert (ours.learning.scheduler, ours.learning.minimum) == ("cosine", 0.25)
    assert (ours.intervals.epoch_pause_frequency, ours.intervals.epoch_pause_time) == (10, 60)
    assert ours.tuning.deterministic
    prodigy = settings.parse(predecessor.config({**theirs, "optimizer": "Prodigy"}, look).settings)
    assert prodigy.learning.lora_learning_rate == 1
    restarts = {**theirs, "lr_scheduler": "cosine_with_restarts", "lr_cycles": 3}
    assert settings.parse(predecessor.config(restarts, look).settings).learning.cycles == 3
    unknown = predecessor.config({**theirs, "optimizer": "Sophia"}, look)
    assert [line for line in unknown.lines if line.ours == "optimizer.name" and "no such optimizer" in line.why]
    assert flat(unknown)["optimizer.name"] == "adamw"
    assert flat(predecessor.config({**theirs, "optimizer": "CAME"}, look))["optimizer.name"] == "came"
    found = predecessor.config({**theirs, "optimizer": "AdanIP Dadaptation", "learning_rate": 1.0}, look)
    assert (flat(found)["optimizer.name"], flat(found)["learning.learning_rate"]) == ("prodigy", 1)
    assert len([line for line in found.lines if line.ours == "learning.text_encoder_learning_rate"]) == 1


def test_what_has_another_name_here_is_taken_or_its_name_is_said() -> None:
    migration = predecessor.config(EVERYTHING_ON, look)
    ours = flat(migration)
    assert (ours["lora.layers"], ours["lora.rank"], ours["saving.weights"]) == ("convolutions", 8, "average")
    assert (ours["objective.min_snr_gamma"], ours["objective.weighting"]) == (4, "min_snr")
    assert (ours["previews.scheduler"], ours["tuning.max_token_length"]) == ("unipc", 225)
    told = fates(migration)
    for key, name in (
        ("lora_model_name", "lora.start_file"), ("lora_txt_rank", "lora.rank"), ("snapshot", "Resume"),
        ("pretrained_vae_name_or_path", "create --vae"), ("full_mixed_precision", "memory.bf16_weights"),
        ("save_ema", "saving.weights"), ("ema_predict", "saving.weights"), ("model_type", "Family"),
        ("save_state_during", "intervals.states_kept_every"), ("save_lora_cancel", "Stop and keep"),
        ("save_lora_after", "always written"), ("tomesd", "not here"), ("use_shared_src", "read where it lies"),
    ):  # fmt: skip
        assert told[key][0] == "left out"
        assert name in told[key][1], key
    raw = predecessor.config({"use_ema": True, "infer_ema": False}, look)
    assert flat(raw)["saving.weights"] == "raw"
    of_full = {**CONFIG_OF_2023_03, "save_ckpt_after": False}
    assert "always written" in fates(predecessor.config(of_full, look))["save_ckpt_after"][1]


@pytest.mark.parametrize("name", ["DDIM", "ddim", "EulerAncestralDiscrete", "DEISMultistepScheduler", "EDMEuler"])
def test_the_sampler_comes_along(name: str) -> None:
    migration = predecessor.config({"scheduler": name}, look)
    wanted = {"DDIM": "ddim", "ddim": "ddim", "EulerAncestralDiscrete": "euler_a", "DEISMultistepScheduler": "deis"}
    assert flat(migration)["previews.scheduler"] == wanted.get(name, "dpm++")
    assert fates(migration)["scheduler"][0] == ("changed" if name in wanted else "left out")


def test_never_saving_models_does_not_leave_a_run_without_states() -> None:
    """The wizard there switched saving off on small cards."""
    migration = predecessor.config({"save_embedding_every": 0, "save_ckpt_during": True, "use_lora": False}, look)
    assert migration.settings["intervals.save_model_every"] == 0
    assert migration.settings["intervals.save_state_every"] == Settings().intervals.save_state_every > 0
    assert [line for line in migration.lines if line.ours.endswith("state_every") and "whole run" in line.why]


def test_older_names_of_the_same() -> None:
    ours = flat(predecessor.config(CONFIG_OF_2022, look))
    assert (ours["optimizer.name"], ours["optimizer.weight_decay"], ours["optimizer.beta2"]) == (
        "adamw_8bit",
        0.02,
        0.99,
    )
    assert (ours["tuning.text_encoder_ratio"], ours["pictures.crop"]) == (1, "random")
    assert (ours["intervals.max_train_steps"], ours["optimizer.max_grad_norm"]) == (1200, 2)
    assert ours["concepts.0.num_class_images_per"] == 20


def test_a_negative_prompt_has_no_caption() -> None:
    one = {**CONCEPT_OF_2023_03, "save_sample_negative_prompt": "[filewords]", "class_negative_prompt": "[filewords]"}
    migration = predecessor.concepts([one], look)
    assert settings.parse(migration.settings)
    assert {"concept 0: save_sample_negative_prompt", "concept 0: class_negative_prompt"} <= left(migration)


def test_the_table_of_controls_is_up_to_date() -> None:
    written = (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8")
    assert written == table.markdown(), "run: python -m dreambooth.core.migrate.table > docs/coming-from.md"


@pytest.mark.parametrize("control", [one for one in controls.every() if one.keys], ids=lambda one: one.label)
def test_what_is_said_of_a_control_is_what_becomes_of_it(control: Control) -> None:
    """docs/coming-from.md says what the importer does, and not another thing."""
    theirs = {**CONFIG_OF_2023_03, **CONFIG_OF_2025, **CONFIG_OF_2022, **EVERYTHING_ON}
    theirs |= {"tenc_grad_clip_norm": 2.0, "save_preview_every": 5}
    for key in control.keys:
        said = {"save_sample_prompt": "[filewords]", "save_sample_negative_prompt": "blurry"}
        in_concept = {**CONCEPT_OF_2023_03, **CONCEPT_OF_2022, **said}
        whole = {**ALONE.get(key, {}), key: theirs.get(key) or True, "use_lora": theirs["use_lora"]}
        if key in in_concept:
            whole = {"concepts_list": [in_concept]}
        lines = [line for line in predecessor.config(whole, look).lines if key in line.theirs]
        assert lines, key
        for line in lines:
            left_with_its_name = line.fate == "left out" and (control.reason in line.why or line.why == control.why)
            assert line.ours in control.ours or left_with_its_name, line
    known = {leaf.key for leaf in schema.leaves(Settings)}
    assert set(control.ours) <= known
