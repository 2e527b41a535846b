"""What becomes of other trainers' settings: realistic files of each kind, and a report of every key."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreambooth.core import schema, settings
from dreambooth.core.migrate import kohya, predecessor
from dreambooth.core.migrate.report import Migration, Seen
from dreambooth.core.settings import Settings

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
DATASET: dict[str, Any] = {
    "general": {"enable_bucket": True, "shuffle_caption": True, "caption_extension": ".txt", "keep_tokens": 2},
    "datasets": [
        {
            "resolution": [512, 768],
            "batch_size": 4,
            "subsets": [
                {"image_dir": "/d/anna", "class_tokens": "sks dog", "num_repeats": 10, "caption_dropout_rate": 0.1},
                {"image_dir": "/d/tom", "class_tokens": "ohwx cat", "flip_aug": True, "color_aug": True},
                {"is_reg": True, "image_dir": "/d/dogs", "class_tokens": "dog"},
                {"is_reg": True, "image_dir": "/d/horses", "class_tokens": "horse"},
            ],
        }
    ],
}


def look(folder: str) -> Seen:
    """Ten pictures everywhere; seven of Anna's have captions."""
    return Seen(10, {".txt": 7} if folder == "/d/anna" else {})


def flat(migration: Migration) -> dict[str, Any]:
    """The migrated settings, which our schema takes as they are."""
    return schema.to_flat(settings.parse(migration.settings))


def left(migration: Migration) -> set[str]:
    return {line.theirs for line in migration.lines if line.fate == "left out"}


def test_what_kohya_does_with_captions_where_it_is_not_told() -> None:
    """It keeps no tag in place, and joins a prefix with a space."""
    subset = {"image_dir": "/d/anna", "class_tokens": "sks dog"}
    general = {"shuffle_caption": True, "caption_prefix": "a photo of"}
    found = kohya.dataset({"general": general, "datasets": [{"subsets": [subset]}]}, look)
    assert (flat(found)["captions.keep_tags"], flat(found)["captions.prefix"]) == (0, "a photo of")
    fates = {line.theirs: (line.fate, line.why) for line in found.lines}
    assert fates["keep_tokens"][0] == fates["datasets 0: caption_prefix"][0] == "changed"
    assert "a comma" in fates["datasets 0: caption_prefix"][1]
    assert flat(kohya.dataset(DATASET, look))["captions.keep_tags"] == 2
    plain = kohya.dataset({"datasets": [{"subsets": [subset]}]}, look)
    assert "captions.keep_tags" not in plain.settings


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
    assert "concept 0: save_sample_prompt" in left(migration)
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


def test_kohyas_dataset() -> None:
    migration = kohya.dataset(DATASET, look)
    ours = flat(migration)
    assert (ours["concepts.0.instance_prompt"], ours["concepts.0.repeats"]) == ("[filewords]", 10)
    assert (ours["concepts.1.instance_prompt"], ours["concepts.1.repeats"]) == ("ohwx cat", 1)
    assert (ours["concepts.0.class_data_dir"], ours["concepts.0.class_mode"]) == ("/d/dogs", "folder")
    assert (ours["concepts.0.class_prompt"], ours["concepts.1.class_mode"]) == ("dog", "off")
    assert (ours["general.resolution"], ours["batching.train_batch_size"]) == (640, 4)
    assert (ours["captions.shuffle_tags"], ours["captions.keep_tags"], ours["captions.dropout"]) == (True, 2, 0.1)
    assert "datasets 0, subset 3" in left(migration)
    assert (ours["pictures.buckets"], ours["pictures.hflip"]) == (True, True)
    assert any("3 of 10 have none" in line.why for line in migration.lines)


def test_what_kohya_calls_otherwise_is_taken() -> None:
    """Jitter of colours and masked training have other names there, and only roughly the same meaning."""
    subset = {"image_dir": "/d/tom", "class_tokens": "ohwx cat", "color_aug": True, "alpha_mask": True}
    migration = kohya.dataset({"datasets": [{"subsets": [subset]}]}, look)
    changed = [(line.theirs.rpartition(": ")[2], line.ours) for line in migration.lines if line.fate == "changed"]
    wanted = {"color_aug": ["pictures.brightness", "pictures.colour"]}
    wanted["alpha_mask"] = ["objective.masked", "objective.unmasked_weight"]
    assert [pair for pair in changed if pair[0] in wanted] == [(key, one) for key in wanted for one in wanted[key]]
    ours = flat(migration)
    assert ours["objective.masked"] and ours["objective.unmasked_weight"] == 0
    assert 0 < ours["pictures.brightness"] < 0.1 and 0 < ours["pictures.colour"] < 0.1


KOHYAS_KEYS: dict[str, Any] = {
    "alpha_mask": True, "batch_size": 2, "bucket_no_upscale": True, "bucket_reso_steps": 64, "cache_info": True,
    "caption_dropout_every_n_epochs": 2, "caption_dropout_rate": 0.1, "caption_extension": ".txt",
    "caption_prefix": "a", "caption_separator": ";", "caption_suffix": "b", "caption_tag_dropout_rate": 0.1,
    "class_tokens": "sks dog", "color_aug": True, "conditioning_data_dir": "/m", "enable_bucket": True,
    "enable_wildcard": True, "face_crop_aug_range": [1.0, 2.0], "flip_aug": True, "is_reg": False, "keep_tokens": 1,
    "keep_tokens_separator": "|||", "max_bucket_reso": 1024, "max_token_length": 225, "metadata_file": "/m.json",
    "min_bucket_reso": 256, "num_repeats": 2, "prior_loss_weight": 1.0, "random_crop": True, "resolution": 512,
    "secondary_separator": ";;;", "shuffle_caption": True, "token_warmup_min": 2, "token_warmup_step": 0.5,
    "validation_seed": 1, "validation_split": 0.1,
}  # fmt: skip


@pytest.mark.parametrize("key", KOHYAS_KEYS)
def test_every_key_of_kohyas_files_is_known(key: str) -> None:
    own = {} if key in ("resolution", "batch_size") else {key: KOHYAS_KEYS[key]}
    whole = {"subsets": [{"image_dir": "/d/tom", **own}]} | ({} if own else {key: KOHYAS_KEYS[key]})
    lines = kohya.dataset({"datasets": [whole]}, look).lines
    assert not [line for line in lines if "no such setting" in line.why]
    if key not in ("caption_extension", "is_reg", "class_tokens"):  # they say how the folder is read
        assert [line for line in lines if line.theirs.endswith(f": {key}")]


def test_kohyas_folders() -> None:
    named = [("10_sks dog", "/k/10_sks dog"), ("5_ohwx man", "/k/5_ohwx man"), ("notes", "/k/notes")]
    ours = flat(kohya.folders(named, [("1_dog", "/r/1_dog"), ("1_man", "/r/1_man")], look))
    assert [ours[f"concepts.{row}.repeats"] for row in (0, 1)] == [10, 5]
    assert [ours[f"concepts.{row}.instance_prompt"] for row in (0, 1)] == ["sks dog", "ohwx man"]
    assert [ours[f"concepts.{row}.class_data_dir"] for row in (0, 1)] == ["/r/1_dog", "/r/1_man"]


def test_what_cannot_be_turned_off_here_is_told() -> None:
    migration = predecessor.config({**CONFIG_OF_2023_03, "cache_latents": False}, look)
    assert {line.value: line.why for line in migration.lines if line.theirs == "cache_latents"} == {
        False: "pictures are always encoded once"
    }


def test_every_key_of_a_config_is_known_or_told() -> None:
    migration = predecessor.config({**CONFIG_OF_2023_03, "brand_new_option": 3}, look)
    assert "brand_new_option" in left(migration)
    told = {line.theirs for line in migration.lines}
    on = {key for key, value in CONFIG_OF_2023_03.items() if value}
    quiet = predecessor._BOOKKEEPING | {"train_unet", "noise_scheduler", "num_train_epochs"}
    assert on - told <= quiet


KEYS = st.sampled_from([*CONFIG_OF_2023_03, *CONFIG_OF_2025])
CONCEPT_KEYS = st.sampled_from([*CONCEPT_OF_2023_03, "num_class_images"])
ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.lists(st.integers())


@given(st.dictionaries(KEYS, ANYTHING, max_size=20), st.lists(st.dictionaries(CONCEPT_KEYS, ANYTHING), max_size=3))
def test_no_config_ends_in_a_traceback(theirs: dict[str, Any], listed: list[dict[str, Any]]) -> None:
    migration = predecessor.config({**theirs, "concepts_list": listed}, look)
    for line in migration.lines:
        assert line.fate == "left out" or line.ours in migration.settings


@pytest.mark.parametrize("theirs", [{"datasets": [{"subsets": [{"image_dir": "/x", "num_repeats": 0}]}]},
                                    {"datasets": [{"resolution": "big", "subsets": [{}]}]}])  # fmt: skip
def test_odd_datasets(theirs: dict[str, Any]) -> None:
    assert left(kohya.dataset(theirs, look))


def test_every_target_is_a_setting() -> None:
    known = {leaf.key for leaf in schema.leaves(Settings)}
    concept = {f"concepts.N.{ours}" for ours in predecessor._CONCEPT.values()}
    targets = {*predecessor._SAME.values(), *predecessor._SAMPLES.values(), *kohya._SAME.values(), *concept}
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
    assert [line for line in unknown.lines if line.theirs == "optimizer" and "no such optimizer" in line.why]
