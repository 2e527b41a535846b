"""Presets set what they say, in every concept, and leave the rest alone."""

from __future__ import annotations

from pathlib import Path

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


def test_native_trains_on_captions_alone_for_as_long_with_many_as_with_few() -> None:
    before = {"intervals.num_train_epochs": 150}  # as another preset has left it
    chosen = settings.parse(presets.apply(presets.find("native"), before, {"concepts.0.num_class_images_per": 0}))
    assert [(c.instance_prompt, c.class_mode) for c in chosen.concepts] == [("[filewords]", "off")]
    assert chosen.intervals.max_train_steps == 3000
    assert presets.apply(presets.find("person"), schema.to_flat(chosen))["intervals.max_train_steps"] == 0


@pytest.mark.parametrize("preset", presets.PRESETS.values(), ids=list(presets.PRESETS))
@pytest.mark.parametrize("method", ["lora", "full", "embedding"])
def test_earlier_results_are_kept_where_their_files_are_small(preset: presets.Preset, method: str) -> None:
    applied = presets.apply(preset, {"general.method": method})
    every = [applied.get(f"intervals.{key}", 0) for key in ("save_model_every", "save_model_every_steps")]
    assert any(every) == (method != "full")


@pytest.mark.parametrize("preset", presets.PRESETS.values(), ids=list(presets.PRESETS))
def test_every_preset_is_made_of_settings_and_reasons(preset: presets.Preset) -> None:
    assert preset.settings.keys() <= {leaf.key for leaf in schema.leaves(Settings)}
    assert all(choice.why for choice in preset.settings.values())


@pytest.mark.parametrize("preset", presets.PRESETS.values(), ids=list(presets.PRESETS))
def test_of_many_pictures_one_is_held_out(preset: presets.Preset, tmp_path: Path) -> None:
    """Where there are few, or the person has chosen already, it stays as it was."""
    for name, count in {"few": 7, "many": 8}.items():
        (tmp_path / name).mkdir()
        for number in range(count):
            (tmp_path / name / f"{number}.png").touch()
        (tmp_path / name / "0-mask.png").touch()
    folders = {0: "few", 1: "many", 2: "many", 3: "none"}
    own: dict[str, object] = {f"concepts.{n}.instance_data_dir": str(tmp_path / name) for n, name in folders.items()}
    own |= {"concepts.2.held_out": 3}
    before = {key: value for key, value in own.items() if not key.startswith("concepts.1.")}
    for applied in (presets.apply(preset, own), presets.apply(preset, before, own)):
        assert [applied.get(f"concepts.{n}.held_out", own.get(f"concepts.{n}.held_out")) for n in folders] == [
            None,
            1,
            3,
            None,
        ]


@pytest.mark.parametrize("folder", [7, "", "~nobody at all/x", "a\0b"])
def test_a_folder_that_can_be_none_has_no_pictures(folder: object) -> None:
    """What is wrong with it is told when the settings are taken."""
    applied = presets.apply(presets.find("person"), {}, {"concepts.0.instance_data_dir": folder})
    assert "concepts.0.held_out" not in applied


def test_a_preset_that_is_not_there() -> None:
    with pytest.raises(UserError, match="none called 'face'"):
        presets.find("face")
