"""What settings come to that is allowed and seldom meant, and what of it is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dreambooth.core import setting_remarks
from dreambooth.core.errors import UserError
from dreambooth.core.memory.footprint_table import full_size
from dreambooth.core.settings import parse

IMAGIC: dict[str, Any] = {"imagic.enabled": True}
CLASS = {"concepts.0.class_prompt": "a dog"}
SD1 = full_size("sd1")


def places(chosen: dict[str, Any], *texts: str, steps: int = 100, model: Any = SD1) -> list[str]:
    return [sentence.partition(":")[0] for sentence in setting_remarks.found(parse(chosen), texts, steps, model)]


def test_one_variant_of_a_text_that_means_several_is_told() -> None:
    assert places({"captions.variants": 1}, "a dog", "a {red|blue} dog") == ["captions.variants"]
    assert places({"captions.variants": 1}, "a dog\na cat") == ["captions.variants"]
    assert places({"captions.variants": 1}, "a dog") == places({}, "a {red|blue} dog") == []


def test_pictures_of_which_nothing_is_said_are_told(tmp_path: Path) -> None:
    asked = parse({"concepts.0.instance_prompt": "a photo of [filewords]", "concepts.1.instance_prompt": "a photo"})
    pictures = {0: [tmp_path / name for name in ("sks dog.jpg", "IMG_1.HEIC", "DSC00002.jpg", "IMG_3.jpg")]}
    pictures[1] = [tmp_path / "IMG_4.jpg"]
    (tmp_path / "IMG_3.txt").write_text("a sks dog")
    said = setting_remarks.found(asked, [], 100, SD1, pictures)
    assert len(said) == 1 and said[0].startswith("concepts.0.instance_prompt: [filewords] stands for nothing at 2 of 4")
    assert "such as IMG_1.HEIC" in said[0]
    for name in ("IMG_1.txt", "DSC00002.caption"):
        (tmp_path / name).write_text("")  # a caption that is empty is meant so
    assert setting_remarks.found(asked, [], 100, SD1, pictures) == []


def test_caption_files_that_are_not_read_are_told(tmp_path: Path) -> None:
    pictures = {0: [tmp_path / "a.png", tmp_path / "b.png"], 1: [tmp_path / "c.png"]}
    chosen = {"concepts.0.instance_prompt": "a photo of sks dog", "concepts.1.instance_prompt": "a cat"}
    assert setting_remarks.found(parse(chosen), [], 100, SD1, pictures) == []
    (tmp_path / "b.caption").write_text("a sks dog on a sofa")
    [said] = setting_remarks.found(parse(chosen), [], 100, SD1, pictures)
    assert said.startswith("concepts.0.instance_prompt:") and "caption files of 1 of 2 pictures are not read" in said
    for own in (
        {"concepts.0.instance_prompt": "a photo of [filewords]"},
        {"concepts.0.instance_prompt": "a photo of a sitting dog", **IMAGIC},
    ):
        assert setting_remarks.found(parse(own), [], 1000, SD1, {0: pictures[0]}) == []


def test_weights_that_are_not_read_are_told() -> None:
    assert places({}, "a dog", "a (red:1.2) dog") == ["captions.weighted"]
    assert places({"previews.prompts": "a dog; (sks: .5) dog"}) == ["captions.weighted"]
    assert places({"captions.weighted": True}, "a (red:1.2) dog") == []
    assert places({}, r"tifa (ff7), :), a \(dog:1\), 16:9") == []


def test_a_class_prompt_without_class_pictures_is_told() -> None:
    assert places(CLASS) == ["concepts.0.num_class_images_per"]
    for more in (
        {"concepts.0.num_class_images_per": 2},
        {"concepts.0.class_mode": "prediction"},
        {"concepts.0.class_mode": "off"},
        {"general.method": "embedding", "concepts.0.instance_token": "sks"},
    ):
        assert places({**CLASS, **more}) == []


def test_few_steps_of_imagic_are_told_of_a_full_size_model() -> None:
    assert places(IMAGIC) == ["intervals.max_train_steps"]
    assert places(IMAGIC, steps=1000) == places({}) == places(IMAGIC, model=None) == []
    assert places(IMAGIC, model=replace(SD1, unet=SD1.unet // 100)) == []


def test_tags_that_could_not_be_shuffled_are_refused() -> None:
    with pytest.raises(UserError, match=r"^captions\.shuffle_tags: captions\.variants is 1"):
        parse({"captions.shuffle_tags": True, "captions.variants": 1})
    assert parse({"captions.shuffle_tags": True, "captions.variants": 2}).captions.shuffle_tags
    with pytest.raises(
        UserError, match=r"^captions\.tag_dropout: captions\.variants is 1.* set captions\.variants to 8"
    ):
        parse({"captions.tag_dropout": 0.1, "captions.variants": 1})


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"keep_marker": ","}, r"captions\.keep_marker: it holds a comma.*take another sign, as \|\|\|\."),
        ({"tie": "a, b"}, r"captions\.tie: it holds a comma.*as ;;;\."),
        (
            {"keep_marker": "|||", "tie": "|"},
            r"captions\.tie: '\|' and captions\.keep_marker, '\|\|\|', cannot be told",
        ),
    ],
)
def test_markers_that_would_part_tags_or_one_another_are_refused(chosen: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse({f"captions.{key}": value for key, value in chosen.items()})
