"""Class pictures: made where missing, used as they are, or left out; drawn from captions; never made twice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dreambooth.core import project, settings
from dreambooth.core.buckets import Bucket
from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import MINIATURE
from dreambooth.core.project import Folders, Project
from dreambooth.engine import class_images, families
from dreambooth.engine.data import class_pictures, inspection, pictures
from dreambooth.engine.data.class_pictures import Plan
from dreambooth.engine.families.model import Model
from dreambooth.service import launcher


@pytest.fixture(scope="module")
def model() -> Model:
    return families.load_file(MINIATURE)


@pytest.fixture
def star(tmp_path: Path) -> Project:
    return project.create(Folders(tmp_path / "models"), "star", MINIATURE)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Three pictures with captions."""
    for name, caption in (("a", "a red sks star"), ("b", "a blue sks star"), ("c", "a red sks star")):
        picture(tmp_path / "mine" / f"{name}.png").with_suffix(".txt").write_text(caption)
    return tmp_path / "mine"


def picture(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (64, 64), "white").save(path)
    return path


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image, dtype=int)


def chosen(mine: Path, **changes: Any) -> settings.Settings:
    """Settings; changes are the concept's, or any with a dotted key."""
    concept = {
        "instance_data_dir": str(mine),
        "instance_prompt": "[filewords]",
        "class_prompt": "a star",
        "num_class_images_per": 2,
        "class_infer_steps": 1,
        **changes,
    }
    return settings.parse({key if "." in key else f"concepts.0.{key}": value for key, value in concept.items()})


def plans(star: Project, parsed: settings.Settings) -> list[Plan]:
    return class_pictures.plan(star, parsed, pictures.examples(pictures.gather(parsed.concepts), parsed, 64), 64)


def plan(star: Project, mine: Path, **changes: Any) -> Plan:
    return plans(star, chosen(mine, **changes))[0]


def make(model: Model, *plans: Plan, stop_after: int = 99) -> None:
    def on_batch(done: int, total: int, last: Path) -> None:
        if done >= stop_after:
            raise KeyboardInterrupt

    class_pictures.make(model, list(plans), lambda _: 2, on_batch, lambda: None)


@pytest.mark.parametrize("changes", [{"class_mode": "off"}, {"num_class_images_per": 0}])
def test_off(star: Project, mine: Path, changes: dict[str, Any]) -> None:
    assert plans(star, chosen(mine, **changes)) == []


def test_they_are_drawn_in_the_shapes_of_your_pictures(star: Project, mine: Path, model: Model) -> None:
    Image.new("RGB", (200, 120), "red").save(mine / "wide.png")
    parsed = chosen(mine, **{"pictures.bucket_step": 8})
    square, wide = plans(star, parsed)
    assert (square.sampling.width, square.sampling.height, square.missing) == (64, 64, 6)
    assert (wide.sampling.width, wide.sampling.height, wide.missing) == (80, 48, 2)
    make(model, square, wide)
    drawn = plans(star, parsed)
    priors = class_pictures.prior_pictures(drawn)
    looks = inspection.inspect_all([p.path for p in priors])
    assert Counter((seen.width, seen.height) for seen in looks) == {(64, 64): 6, (80, 48): 2}
    instances = pictures.examples(pictures.gather(parsed.concepts), parsed, 64)
    cuts = [example.cut for example in pictures.prior_examples(priors, looks, instances)]
    assert all(cut.box == (0, 0, cut.bucket.width, cut.bucket.height) for cut in cuts)  # nothing is cut off
    assert Counter(cut.bucket for cut in cuts) == {Bucket(64, 64): 6, Bucket(80, 48): 2}


def test_a_folder_as_it_is(star: Project, mine: Path, tmp_path: Path) -> None:
    picture(tmp_path / "class" / "one.png")
    picture(tmp_path / "class" / "two.png").with_suffix(".txt").write_text("sks on grass")
    folder: dict[str, Any] = {"class_mode": "folder", "class_data_dir": str(tmp_path / "class")}
    as_it_is = plan(star, mine, **folder)
    assert (as_it_is.wanted, as_it_is.missing) == (2, 0)
    assert [p.prompt for p in as_it_is.existing] == ["a star", "a star"]
    tokens = {"instance_token": "sks", "class_token": "star", "class_prompt": "[filewords]"}
    assert [p.prompt for p in plan(star, mine, **folder, **tokens).existing] == ["star, one", "star on grass"]


@pytest.mark.parametrize("mode", ["folder", "fill"])
def test_choices_in_the_class_prompt_are_made_for_pictures_of_ones_own(
    star: Project, mine: Path, tmp_path: Path, mode: str
) -> None:
    for name in range(9):
        picture(tmp_path / "class" / f"{name}.png").with_suffix(".txt").write_text("on {grass|sand}")
    own = {"class_mode": mode, "class_data_dir": str(tmp_path / "class"), "num_class_images_per": 4}
    made = plan(star, mine, class_prompt="a {red|blue} star [filewords]", **own)
    assert len(made.existing) == 9 and made.missing == (3 if mode == "fill" else 0)
    prompts = {one.prompt for one in class_pictures.prior_pictures([made])}
    assert prompts <= {f"a {colour} star on {place}" for colour in ("red", "blue") for place in ("grass", "sand")} | {
        f"a {colour} star a {other} sks star" for colour in ("red", "blue") for other in ("red", "blue")
    }
    assert len({one.prompt for one in made.existing}) > 1


def test_a_folder_that_is_empty_or_not_named(star: Project, mine: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"concepts\.0\.class_data_dir: there are no pictures in"):
        plan(star, mine, class_mode="folder", class_data_dir=str(tmp_path / "gone"))
    with pytest.raises(UserError, match=r"concepts\.0\.class_data_dir: it is empty"):
        plan(star, mine, class_mode="folder")


def test_prompts_from_captions(star: Project, mine: Path, model: Model) -> None:
    tokens = {"instance_token": "sks", "class_token": "star", "class_prompt": "[filewords]", "num_class_images_per": 1}
    drawn = plan(star, mine, **tokens)
    assert [w.prompt for w in drawn.to_draw] == ["a red star", "a blue star", "a red star"]
    assert len({w.seed for w in drawn.to_draw}) == 3
    make(model, drawn)
    again = plan(star, mine, **tokens)
    assert (again.missing, [p.prompt for p in again.existing]) == (0, ["a red star", "a blue star", "a red star"])
    picture(mine / "d.png").with_suffix(".txt").write_text("a green sks star")
    assert [w.prompt for w in plan(star, mine, **tokens).to_draw] == ["a green star"]
    as_it_is = {**tokens, "class_mode": "folder", "class_data_dir": str(drawn.folder)}
    assert sorted(p.prompt for p in plan(star, mine, **as_it_is).existing) == [
        "a blue star",
        "a red star",
        "a red star",
    ]


def test_choices_in_the_class_prompt_are_all_drawn(star: Project, mine: Path) -> None:
    drawn = plan(star, mine, class_prompt="a {red|blue} star", num_class_images_per=10)
    assert {w.prompt for w in drawn.to_draw} == {"a red star", "a blue star"}
    assert drawn == plan(star, mine, class_prompt="a {red|blue} star", num_class_images_per=10)


def test_what_is_drawn_depends_on_the_prompt_and_the_seed_alone(star: Project, mine: Path, model: Model) -> None:
    drawn = plan(star, mine)
    with pytest.raises(KeyboardInterrupt):
        make(model, drawn, stop_after=2)
    half = plan(star, mine)
    assert (len(half.existing), half.missing) == (2, 4)
    make(model, half)
    in_pairs = {p.path.name: pixels(p.path) for p in plan(star, mine).existing}
    for path in drawn.folder.iterdir():
        path.unlink()
    class_pictures.make(model, [drawn], lambda _: 6, lambda *_: None, lambda: None)
    at_once = {path.name: pixels(path) for path in drawn.folder.iterdir()}
    assert in_pairs.keys() == at_once.keys()
    assert all(np.abs(in_pairs[name] - at_once[name]).max() <= 1 for name in at_once)
    assert len({picture.tobytes() for picture in at_once.values()}) == 6


@pytest.mark.parametrize(
    "change",
    [{"class_prompt": "a heart"}, {"class_infer_steps": 2}, {"class_guidance_scale": 3.0},
     {"class_negative_prompt": "blue"}, {"general.seed": 2}, {"tuning.clip_skip": 2},
     {"tuning.max_token_length": 150}, {"tuning.pad_tokens": False}],
)  # fmt: skip
def test_everything_that_changes_a_picture_changes_its_folder(
    star: Project, mine: Path, change: dict[str, Any]
) -> None:
    assert plan(star, mine, **change).folder != plan(star, mine).folder


def test_a_folder_of_ones_own_is_filled_up(star: Project, mine: Path, tmp_path: Path, model: Model) -> None:
    own = {"class_data_dir": str(tmp_path / "class")}
    picture(tmp_path / "class" / "photo.png")
    filled = plan(star, mine, **own)
    assert ([p.path.name for p in filled.existing], filled.missing) == (["photo.png"], 5)
    make(model, filled)
    assert plan(star, mine, **own).missing == 0
    assert (tmp_path / "class" / "photo.png").stat().st_size < 1000  # still the white one


def test_the_errand_makes_them_once_and_shows_them(star: Project, mine: Path) -> None:
    def errand() -> dict[str, Any]:
        job = launcher.new_errand(Folders(star.folder.parents[1]), star, "class-images", chosen(mine))
        ending, said = class_images.run(job)
        assert ending == "done"
        return said

    first = errand()
    assert (first["class_pictures"][0]["pictures"], first["class_pictures"][0]["made"]) == (6, 6)
    with Image.open(first["sheet"]) as sheet:
        assert 6 * 160 < sheet.width < 7 * 160
    assert errand()["class_pictures"][0]["made"] == 0


@pytest.mark.parametrize("mode", ["folder", "fill"])
def test_the_errand_names_a_damaged_picture_before_it_draws_any(
    star: Project, mine: Path, tmp_path: Path, mode: str
) -> None:
    damaged = picture(tmp_path / "class" / "one.png")
    damaged.write_bytes(damaged.read_bytes()[:60])
    parsed = chosen(mine, class_mode=mode, class_data_dir=str(tmp_path / "class"))
    job = launcher.new_errand(Folders(star.folder.parents[1]), star, "class-images", parsed)
    with pytest.raises(UserError, match=r"one\.png: this picture cannot be read"):
        class_images.run(job)
    assert list((tmp_path / "class").iterdir()) == [damaged]


def test_the_errand_goes_without_a_sheet_that_cannot_be_written(star: Project, mine: Path) -> None:
    sheet = star.folder / "class-pictures.png"
    sheet.mkdir()
    for made in (6, 0):
        job = launcher.new_errand(Folders(star.folder.parents[1]), star, "class-images", chosen(mine))
        ending, said = class_images.run(job)
        assert (ending, said["class_pictures"][0]["made"], said["sheet"]) == ("done", made, "")
        assert [warning.sentence.startswith(str(sheet)) for warning in job.story().warnings] == [True]


def test_once_drawn_they_come_in_the_same_order(star: Project, mine: Path, tmp_path: Path, model: Model) -> None:
    """A run that is resumed finds all of them in the folder, and must train on them as it did before."""
    own: dict[str, Any] = {"class_data_dir": str(tmp_path / "class"), "class_prompt": "a {red|blue|green} star"}
    for name in ("a", "z"):
        picture(tmp_path / "class" / f"{name}.png")
    for changes in ({}, own):
        first = plan(star, mine, **changes)
        make(model, first)
        if not changes:  # and so where one of them is drawn anew
            first.to_draw[0].path.unlink()
            first = plan(star, mine)
            make(model, first)
        assert class_pictures.prior_pictures([plan(star, mine, **changes)]) == class_pictures.prior_pictures([first])


def test_what_two_concepts_share_is_drawn_once(star: Project, mine: Path, tmp_path: Path, model: Model) -> None:
    picture(tmp_path / "other" / "d.png").with_suffix(".txt").write_text("a green abc star")
    second = {"concepts.1.instance_data_dir": str(tmp_path / "other"), "concepts.1.instance_prompt": "[filewords]"}
    second |= {"concepts.1.class_prompt": "a star", "concepts.1.class_infer_steps": 1}
    for folder in ("", str(tmp_path / "class")):
        both = {**second, "concepts.1.num_class_images_per": 8, "concepts.1.class_data_dir": folder}
        parsed = chosen(mine, class_data_dir=folder, **both)
        one, other = plans(star, parsed)
        assert ((one.wanted, one.missing), (other.wanted, other.missing)) == ((6, 6), (8, 2))
        make(model, one, other)
        assert len(list(one.folder.glob("*.png"))) == 8
        assert not any(again.missing for again in plans(star, parsed))
        for concept, planned in enumerate((one, other)):
            assert {prior.concept for prior in class_pictures.prior_pictures([planned])} == {concept}


def test_what_two_concepts_put_into_one_folder_is_called_what_it_shows(
    star: Project, mine: Path, tmp_path: Path
) -> None:
    second = {"concepts.1.instance_data_dir": str(mine), "concepts.1.instance_prompt": "an abc heart"}
    second |= {"concepts.1.class_prompt": "a heart", "concepts.1.class_data_dir": str(tmp_path / "class")}
    parsed = chosen(mine, class_data_dir=str(tmp_path / "class"), **second, **{"concepts.1.num_class_images_per": 2})
    one, other = plans(star, parsed)
    assert {wanted.path for wanted in one.to_draw}.isdisjoint(wanted.path for wanted in other.to_draw)
    assert {prior.prompt for prior in class_pictures.prior_pictures([other])} == {"a star"}
