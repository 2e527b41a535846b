"""What becomes of the settings of kohya's scripts: dataset files and folders, and a report of every key."""

from __future__ import annotations

from typing import Any

import pytest

from dreambooth.core import schema
from dreambooth.core.migrate import kohya_dataset
from dreambooth.core.settings import Settings
from tests.core.migrations import fates, flat, left, look

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


def test_what_kohya_does_with_captions_where_it_is_not_told() -> None:
    """It keeps no tag in place, and joins a prefix with a space."""
    subset = {"image_dir": "/d/anna", "class_tokens": "sks dog"}
    general = {"shuffle_caption": True, "caption_prefix": "a photo of"}
    found = kohya_dataset.from_toml({"general": general, "datasets": [{"subsets": [subset]}]}, look)
    assert (flat(found)["captions.keep_tags"], flat(found)["captions.prefix"]) == (0, "a photo of")
    fates = {line.theirs: (line.fate, line.why) for line in found.lines}
    assert fates["keep_tokens"][0] == fates["datasets 0: caption_prefix"][0] == "changed"
    assert "a comma" in fates["datasets 0: caption_prefix"][1]
    assert flat(kohya_dataset.from_toml(DATASET, look))["captions.keep_tags"] == 2
    plain = kohya_dataset.from_toml({"datasets": [{"subsets": [subset]}]}, look)
    assert "captions.keep_tags" not in plain.settings


def test_kohyas_tags() -> None:
    said = {"keep_tokens_separator": "|||", "secondary_separator": ";;;", "caption_tag_dropout_rate": 0.2}
    subset = {"image_dir": "/d/anna", "class_tokens": "sks dog", "caption_dropout_every_n_epochs": 5}
    other = {"image_dir": "/d/tom", "class_tokens": "ohwx cat", "keep_tokens_separator": "///"}
    found = kohya_dataset.from_toml({"general": said, "datasets": [{"subsets": [subset, other]}]}, look)
    ours = flat(found)
    assert (ours["captions.keep_marker"], ours["captions.tie"], ours["captions.tag_dropout"]) == ("|||", ";;;", 0.2)
    assert (ours["captions.dropout_every"], ours["captions.keep_tags"]) == (5, 0)
    assert "datasets 0, subset 1: keep_tokens_separator" in left(found)
    why = {line.theirs: line.why for line in found.lines}
    assert "at each step there" in why["datasets 0: caption_tag_dropout_rate"]


def test_kohyas_dataset() -> None:
    migration = kohya_dataset.from_toml(DATASET, look)
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
    migration = kohya_dataset.from_toml({"datasets": [{"subsets": [subset]}]}, look)
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
    lines = kohya_dataset.from_toml({"datasets": [whole]}, look).lines
    assert not [line for line in lines if "no such setting" in line.why]
    if key not in ("caption_extension", "is_reg", "class_tokens"):  # they say how the folder is read
        assert [line for line in lines if line.theirs.endswith(f": {key}")]


def test_kohyas_folders() -> None:
    named = [("10_sks dog", "/k/10_sks dog"), ("5_ohwx man", "/k/5_ohwx man"), ("notes", "/k/notes")]
    ours = flat(kohya_dataset.from_folders(named, [("1_dog", "/r/1_dog"), ("1_man", "/r/1_man")], look))
    assert [ours[f"concepts.{row}.repeats"] for row in (0, 1)] == [10, 5]
    assert [ours[f"concepts.{row}.instance_prompt"] for row in (0, 1)] == ["sks dog", "ohwx man"]
    assert [ours[f"concepts.{row}.class_data_dir"] for row in (0, 1)] == ["/r/1_dog", "/r/1_man"]


def test_a_folder_of_no_repeats_is_not_trained() -> None:
    found = kohya_dataset.from_folders(
        [("0_old", "/k/0_old"), ("2_sks dog", "/k/2_sks dog")], [("0_dog", "/r/0_dog")], look
    )
    assert flat(found)["concepts.0.instance_data_dir"] == "/k/2_sks dog"
    assert flat(found)["concepts.0.class_mode"] == "off" and not any("concepts.1" in key for key in flat(found))
    assert fates(found)["0_old"] == fates(found)["0_dog"] == ("left out", "it is not trained there either")


@pytest.mark.parametrize("theirs", [{"datasets": [{"subsets": [{"image_dir": "/x", "num_repeats": 0}]}]},
                                    {"datasets": [{"resolution": "big", "subsets": [{}]}]}])  # fmt: skip
def test_odd_datasets(theirs: dict[str, Any]) -> None:
    assert left(kohya_dataset.from_toml(theirs, look))


def test_every_target_is_a_setting() -> None:
    ours = {*kohya_dataset.SAME.values(), *(row[0] for rows in kohya_dataset.CHANGED.values() for row in rows)}
    assert ours <= {leaf.key for leaf in schema.leaves(Settings)}
