"""Presets set what they say, in every concept, and leave the rest alone."""

from __future__ import annotations

import pytest

from dreambooth.core import presets, schema, settings
from dreambooth.core.errors import UserError
from dreambooth.core.settings import Settings

TWO = {"concepts.0.class_prompt": "a dog", "concepts.1.class_prompt": "a cat", "lora.rank": 3}


@pytest.mark.parametrize(("name", "epochs", "per_picture"), [("person", 150, 5), ("object", 100, 0)])
def test_steps_and_class_pictures(name: str, epochs: int, per_picture: int) -> None:
    chosen = settings.parse(presets.apply(presets.find(name), TWO))
    assert chosen.intervals.num_train_epochs == epochs
    assert [concept.num_class_images_per for concept in chosen.concepts] == [per_picture] * 2
    assert [concept.class_prompt for concept in chosen.concepts] == ["a dog", "a cat"]
    assert chosen.lora.rank == 3


def test_native_trains_on_captions_alone() -> None:
    chosen = settings.parse(presets.apply(presets.find("native"), {}, ["concepts.0.num_class_images_per"]))
    assert [(c.instance_prompt, c.class_mode) for c in chosen.concepts] == [("[filewords]", "off")]


@pytest.mark.parametrize("preset", presets.PRESETS.values(), ids=list(presets.PRESETS))
def test_every_preset_is_made_of_settings_and_reasons(preset: presets.Preset) -> None:
    assert preset.settings.keys() <= {leaf.key for leaf in schema.leaves(Settings)}
    assert all(why for _, why in preset.settings.values())


def test_a_preset_that_is_not_there() -> None:
    with pytest.raises(UserError, match="none called 'face'"):
        presets.find("face")
