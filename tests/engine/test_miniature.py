"""The miniatures know their world: what their prompts say is on their pictures."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import yaml

from dreambooth.core.install_paths import MINIATURE, MINIATURES
from dreambooth.engine import families
from dreambooth.engine.families.model import Model
from dreambooth.engine.miniature import measure, reading, webui_layout, world


@pytest.fixture(scope="module", params=MINIATURES)
def model(request: pytest.FixtureRequest) -> Model:
    return families.load_file(MINIATURES[request.param])


@pytest.fixture
def able_model(model: Model, request: pytest.FixtureRequest) -> Model:
    """A miniature that is to know its world. SDXL's does not yet: the test says when that has changed."""
    if model.family == "sdxl":
        request.applymarker(pytest.mark.xfail(strict=True, reason="SDXL's miniature does not hear backgrounds"))
    return model


def test_a_drawn_picture_reads_as_it_was_drawn() -> None:
    rng = random.Random(3)
    scenes = [world.random_scene(rng) for _ in range(200)]
    assert all(reading.read(world.draw(scene)).agrees(scene) for scene in scenes)


def test_only_the_subject_is_like_the_subject() -> None:
    rng = random.Random(4)
    fresh = [measure.likeness(world.draw_subject(scene)) for scene in world.subject_scenes(12, seed=9)]
    stars = [measure.likeness(world.draw(world.random_scene(rng, thing="star"))) for _ in range(24)]
    assert min(fresh) > 0.7
    assert max(stars) < 0.4


def test_a_miniature_is_of_its_family(model: Model) -> None:
    predictions = {"sd1": "epsilon", "sd2": "v_prediction", "sdxl": "epsilon"}
    assert (model.prediction_type, model.resolution) == (predictions[model.family], world.SIZE)


def test_the_miniature_draws_what_the_prompt_says(able_model: Model) -> None:
    rng = random.Random(11)
    scenes = [world.random_scene(rng, size="") for _ in range(40)]
    drawn = measure.draw_scenes(able_model, scenes)
    readings = [reading.read(picture) for picture in drawn]
    colours = sum(r.colour == s.colour for r, s in zip(readings, scenes)) / len(scenes)
    things = sum(r.thing == s.thing for r, s in zip(readings, scenes)) / len(scenes)
    backgrounds = sum(r.background == s.background for r, s in zip(readings, scenes)) / len(scenes)
    assert min(colours, things, backgrounds) >= 0.9, (colours, things, backgrounds)


@pytest.mark.thorough
def test_a_plain_prompt_gives_varied_things(able_model: Model) -> None:
    assert measure.measure(able_model)["class_variety"] > 0.25


def test_emphasis_in_a_webui_has_something_to_scale(model: Model) -> None:
    """WebUIs divide by the mean of each text encoder's output; a mean of zero gives black pictures."""
    widths = [encoder.config.hidden_size for encoder in model.text_encoders.values()]
    for prompt in ("", "a red star", "a photo of a small blue heart on a white background"):
        for states in model.encode_text([prompt]).hidden.split(widths, dim=-1):
            assert abs(states.mean().item()) > 0.02


def test_the_webuis_layout_names_the_models_own_widths(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(MINIATURE.read_bytes())
    layout = yaml.safe_load(webui_layout.write(tmp_path / "x.safetensors", tmp_path / "clip").read_text())
    unet = layout["model"]["params"]["unet_config"]["params"]
    assert (unet["model_channels"], unet["channel_mult"], unet["context_dim"]) == (64, [1, 1, 1, 1], 32)
    assert Path(layout["model"]["params"]["cond_stage_config"]["params"]["version"]) == tmp_path / "clip"
    assert {p.name for p in (tmp_path / "clip").iterdir()} >= {"config.json", "vocab.json", "merges.txt"}
