"""A crop that was chosen by hand, from the file beside the picture to what is learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dreambooth.core import focal_point, project
from dreambooth.core.focal_point import FocalPoint
from dreambooth.core.install_paths import MINIATURE
from dreambooth.core.project import Folders, Project
from dreambooth.core.settings import parse
from dreambooth.engine import contact_sheet, families, plan
from dreambooth.engine.data import cache, inpainting_masks, pictures
from dreambooth.engine.data.latent_store import Store
from dreambooth.engine.data.pictures import Example
from dreambooth.service import launcher
from dreambooth.service.pictures import write_point
from dreambooth.ui.describe import of_runs
from tests.engine.runs import LORA, output, same, tiny_project, train

WIDE = (192, 64)
LEFT, RIGHT = FocalPoint(32 / 192, 0.5), FocalPoint(160 / 192, 0.5)


@pytest.fixture(scope="module")
def star(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return tiny_project(tmp_path_factory.mktemp("star"))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A picture three times as wide as it is high, as fine as what is trained."""
    (tmp_path / "mine").mkdir()
    coarse = np.random.default_rng(0).integers(0, 255, (8, 24, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(WIDE, Image.Resampling.BICUBIC).save(tmp_path / "mine" / "a.png")
    return tmp_path / "mine" / "a.png"


def asked(photo: Path, **changes: Any) -> dict[str, Any]:
    own = {"concepts.0.instance_data_dir": str(photo.parent), "concepts.0.instance_prompt": "a sks star"}
    return {**own, "pictures.buckets": False, **changes}


def checked(photo: Path, **changes: Any) -> dict[str, Any]:
    folders = Folders(photo.parents[1] / f"models{len(list(photo.parents[1].iterdir()))}")
    job = launcher.new_errand(folders, project.create(folders, "x", MINIATURE), "check", parse(asked(photo, **changes)))
    return plan.report(job)


def examples(photo: Path, **changes: Any) -> list[Example]:
    settings = parse(asked(photo, **changes))
    (variants,) = pictures.examples(pictures.gather(settings.concepts), settings, 64)
    return variants


def test_what_is_learned_is_what_a_picture_cut_by_hand_teaches(star: Project, photo: Path, tmp_path: Path) -> None:
    """To the bit: the file may as well have been cut in another program."""
    short = {**LORA, "batching.train_batch_size": 1, "intervals.max_train_steps": 2}
    middle = output(train(star, **asked(photo, **short)))
    write_point(photo, LEFT)
    left = output(train(star, **asked(photo, **short)))
    cut = tmp_path / "cut" / "a.png"
    cut.parent.mkdir()
    Image.open(photo).crop((0, 0, 64, 64)).save(cut)
    assert same(left, output(train(star, **asked(cut, **short))))
    assert not same(left, middle)
    write_point(photo, None)
    assert not focal_point.beside(photo).exists()
    assert same(middle, output(train(star, **asked(photo, **short)))), "it is automatic again"


@pytest.mark.parametrize("crop", ["centre", "random", "smart"])
def test_the_plan_shows_the_crop_that_is_made(photo: Path, crop: str) -> None:
    before = photo.read_bytes()
    assert checked(photo, **{"pictures.crop": crop})["pictures"][0]["chosen"] is None
    write_point(photo, RIGHT)
    said = checked(photo, **{"pictures.crop": crop})
    (row,) = said["pictures"]
    assert row["crops"][0] == [128, 0, 192, 64] and not said["problems"] and not said["strangers"]
    assert row["chosen"] == {"x": round(RIGHT.x, 4), "y": 0.5, "zoom": 1}
    assert "crop keeps only" not in str(row["warnings"]), "nobody is told what he has chosen"
    assert "left:66.67%;top:0.00%;width:33.33%" in contact_sheet.page("x", said, [b"a thumbnail"])
    assert "crop by hand" in contact_sheet.page("x", said, [b"a thumbnail"]) and "crop by hand" in of_runs.plan(said)
    assert photo.read_bytes() == before


def test_a_crop_that_would_be_enlarged_is_as_tight_as_can_be_and_that_is_said(photo: Path) -> None:
    write_point(photo, FocalPoint(0.5, 0.5, 3))
    (row,) = checked(photo)["pictures"]
    assert row["crops"] == [[64, 0, 128, 64]]
    assert row["warnings"] == ["its crop is 1.00 times tighter, not 3 times, so that it need not be enlarged"]


def test_a_file_that_holds_no_crop_stops_a_run_with_a_sentence_in_the_plan(photo: Path) -> None:
    focal_point.beside(photo).write_text("x: 0.3")
    said = checked(photo)
    assert said["problems"] == [
        f'{photo.with_suffix(".focus")}: it holds no crop such as {{"x": 0.3, "y": 0.5}}; choose the crop anew, or '
        "remove the file."
    ]
    assert said["pictures"][0]["crops"] == [[64, 0, 128, 64]], "the picture is shown all the same"


def test_latents_of_another_crop_are_others(photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = families.load_file(MINIATURE), list[int]()
    real = model.encode_pictures
    monkeypatch.setattr(model, "encode_pictures", lambda pixels: (seen.append(len(pixels)), real(pixels))[1])
    for point, encoded in ((None, 1), (LEFT, 1), (RIGHT, 1), (LEFT, 0), (None, 0)):
        write_point(photo, point)
        before = len(seen)
        cache.encode(model, examples(photo), ["a sks star"], lambda done: None, Store(tmp_path / "kept", model))
        assert len(seen) - before == encoded


def test_masks_are_cut_with_the_picture(photo: Path) -> None:
    grey = Image.new("L", WIDE, 0)
    grey.paste(255, (128, 0, 192, 64))
    grey.save(photo.with_name("a-mask.png"))
    write_point(photo, RIGHT)
    (example,) = examples(photo)
    (cut,) = cache.cut_masks([example])
    assert cut is not None and cut.min() == 1
    (own, *_) = inpainting_masks.masks("a.png", 0, example.cut, grey, 2, 0)
    assert own.all()


def test_pictures_of_the_class_are_not_concerned(photo: Path, tmp_path: Path) -> None:
    of_class = tmp_path / "class" / "b.png"
    of_class.parent.mkdir()
    photo.rename(of_class)
    write_point(of_class, LEFT)
    (look,) = pictures.inspection.inspect_all([of_class])
    Image.new("RGB", (64, 64)).save(photo)
    of_yours = [examples(photo)]
    (prior,) = pictures.prior_examples([pictures.Picture(of_class, "a star", 0)], [look], of_yours)
    assert prior.cut.box == (64, 0, 128, 64)
