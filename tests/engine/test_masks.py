"""Masked training: where masks are found, that they follow their picture, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dreambooth.core import picture_files, project, settings
from dreambooth.core.buckets import Bucket
from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import MINIATURE
from dreambooth.core.job_folder import Job
from dreambooth.core.project import Folders, Project
from dreambooth.engine import families, worker
from dreambooth.engine.data import cache, cropping, decoding, masks
from dreambooth.engine.data.pictures import Example, Picture
from dreambooth.service import launcher


def spot(width: int = 96, height: int = 80, box: tuple[int, int, int, int] = (16, 8, 56, 48)) -> Image.Image:
    """A white spot on black."""
    grey = Image.new("L", (width, height), 0)
    grey.paste(255, box)
    return grey


def with_alpha(path: Path, alpha: Image.Image) -> Path:
    picture = Image.new("RGB", alpha.size, "green")
    picture.putalpha(alpha)
    picture.save(path)
    return path


def photo(path: Path, **options: Any) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    spot().convert("RGB").save(path, **options)
    return path


def test_a_mask_is_a_file_beside_the_picture_or_below_it_or_its_transparency(tmp_path: Path) -> None:
    beside, below, clear, plain = (photo(tmp_path / f"{name}.jpg") for name in ("beside", "below", "clear", "plain"))
    spot().save(tmp_path / "beside-mask.png")
    (tmp_path / "masks").mkdir()
    spot().save(tmp_path / "masks" / "below.png")
    clear.unlink()
    clear = with_alpha(tmp_path / "clear.png", spot())
    for path in (beside, below, clear):
        found = masks.decode(path)
        assert found is not None
        assert np.array_equal(np.asarray(found), np.asarray(spot()))
    assert masks.decode(plain) is None
    on = settings.parse({"objective.masked": True})
    assert masks.problem(on, [plain, clear]) == masks.problem(on, [plain, below]) == ""
    assert masks.problem(settings.parse({}), [plain]) == ""
    assert "none of your pictures has a mask" in masks.problem(on, [plain])


def test_a_file_wins_over_transparency_and_a_smaller_one_is_enlarged(tmp_path: Path) -> None:
    path = with_alpha(tmp_path / "a.png", spot(box=(0, 0, 1, 1)))
    spot().resize((48, 40)).save(tmp_path / "a-mask.png")
    found = masks.decode(path)
    assert found is not None
    assert found.size == (96, 80)
    assert np.abs(np.asarray(found, int) - np.asarray(spot(), int)).mean() < 5


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_of_a_mask_on_a_transparent_layer_what_was_painted_counts(mode: str, tmp_path: Path) -> None:
    picture = photo(tmp_path / "a.jpg")
    layer = Image.new("RGBA", spot().size, (0, 0, 0, 0))
    layer.paste((255, 255, 255, 255), mask=spot())
    layer.convert(mode).save(tmp_path / "a-mask.png")
    found = masks.decode(picture)
    assert found is not None and np.array_equal(np.asarray(found), np.asarray(spot()))


def test_masks_of_onetrainer(tmp_path: Path) -> None:
    picture = photo(tmp_path / "a.jpg")
    spot().save(tmp_path / "a-masklabel.png")
    assert masks.file_of(picture) == tmp_path / "a-masklabel.png"
    assert picture_files.find(tmp_path) == [picture]


def test_masks_are_no_pictures_and_pictures_called_like_masks_are(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    photo(tmp_path / "a-mask.png")
    photo(tmp_path / "carnival-mask.png")  # there is no carnival
    photo(tmp_path / "masks" / "a.png")
    photo(tmp_path / "masks" / "venice.png")
    found = [path.relative_to(tmp_path).as_posix() for path in picture_files.find(tmp_path)]
    assert found == ["a.jpg", "carnival-mask.png", "masks/venice.png"]


def test_a_mask_lies_upright_with_its_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    turned = photo(tmp_path / "a.jpg", exif=exif)
    upright = decoding.decode(turned).convert("L")
    upright.save(tmp_path / "a-mask.png")
    found = masks.decode(turned)
    assert found is not None
    assert found.size == upright.size == (80, 96)


@pytest.mark.parametrize("seed", range(4))
def test_a_mask_is_cut_turned_and_mirrored_with_its_picture(seed: int) -> None:
    """A picture that is its own mask stays so in every variant, whatever its tones are changed to."""
    changes = {
        "pictures.crop": "random",
        "pictures.hflip": True,
        "pictures.rotation": 20,
        "pictures.crop_jitter": 0.3,
        "pictures.brightness": 0.5,
        "pictures.colour": 0.5,
    }
    choice = settings.parse(changes).pictures
    whole, bucket = spot().convert("RGB"), Bucket(64, 64)
    for cut in cropping.cuts("a.png", whole.size, bucket, choice, seed, lambda: whole):
        picture = cropping.apply(whole, replace(cut, brightness=1.0, colour=1.0)).convert("L")
        mask = cropping.shape(spot(), cut)
        assert np.abs(np.asarray(picture, int) - np.asarray(mask, int)).max() <= 1
        latents = cache.to_mask(mask)
        blocks = np.asarray(mask, float).reshape(8, 8, 8, 8).mean((1, 3)) / 255
        assert latents.shape == (1, 8, 8)
        assert np.abs(latents[0].numpy() - blocks).max() < 0.01


def examples(folder: Path, **changes: Any) -> list[Example]:
    choice = settings.parse(changes).pictures
    made = []
    for path in picture_files.find(folder):
        with Image.open(path) as image:
            size = image.size
        for cut in cropping.cuts(path.name, size, Bucket(64, 64), choice, 0, Image.new):
            made.append(Example(Picture(path, "x", 0), cut))
    return made


def test_each_example_gets_its_own_mask(tmp_path: Path) -> None:
    with_alpha(tmp_path / "a.png", spot(64, 64, (0, 0, 32, 64)))
    with_alpha(tmp_path / "b.png", spot(64, 64, (0, 0, 64, 8)))
    Image.new("RGB", (64, 64)).save(tmp_path / "c.png")
    some = examples(tmp_path, **{"pictures.hflip": True, "pictures.variants": 2})
    model = families.load_file(MINIATURE)
    encoded = cache.encode(model, some, ["x"], lambda done: None)
    assert encoded.masks(torch.tensor([0])) is None
    cache.add_masks(encoded, cache.cut_masks(some))
    found = encoded.masks(torch.arange(6))
    assert found is not None
    left = torch.cat([torch.ones(8, 4), torch.zeros(8, 4)], dim=1)
    top = torch.cat([torch.ones(1, 8), torch.zeros(7, 8)])
    expected = [left, left.flip(1), top, top, torch.ones(8, 8), torch.ones(8, 8)]
    assert torch.equal(found[:, 0], torch.stack(expected))


@pytest.fixture(scope="module")
def star(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return project.create(Folders(tmp_path_factory.mktemp("masked")), "star", MINIATURE)


def train(star: Project, folder: Path, **changes: Any) -> Job:
    chosen = settings.parse(
        {
            "concepts.0.instance_data_dir": str(folder),
            "concepts.0.instance_prompt": "a photo of sks star",
            "intervals.num_train_epochs": 2,
            "learning.lora_learning_rate": 1e-3,
            "previews.count": 0,
            **changes,
        }
    )
    job = launcher.new_run(Folders(star.folder.parents[1]), star, chosen)
    worker.run(job)
    return job


def test_a_run_is_taught_by_what_the_mask_leaves(star: Project, tmp_path: Path) -> None:
    """With the rest at 1 a mask changes nothing; with less it does."""
    with_alpha(tmp_path / "a.png", spot(64, 64, (0, 0, 32, 32)))
    learned = [
        load_file(next(e["path"] for e in train(star, tmp_path, **changes).events()[0] if e["event"] == "saved"))
        for changes in (
            {},
            {"objective.masked": True, "objective.unmasked_weight": 1.0},
            {"objective.masked": True, "objective.unmasked_weight": 0.0},
        )
    ]
    plain, whole, masked = learned
    assert all(torch.allclose(plain[name], whole[name], atol=1e-4) for name in plain)
    assert max((plain[name] - masked[name]).abs().max().item() for name in plain) > 1e-3


def test_a_mask_that_will_not_do_is_named_with_its_mend(star: Project, tmp_path: Path) -> None:
    on = {"objective.masked": True}
    photo(tmp_path / "a.png")
    with pytest.raises(UserError, match="none of your pictures has a mask"):
        train(star, tmp_path, **on)
    spot(40, 96).save(tmp_path / "a-mask.png")
    with pytest.raises(UserError, match=r"a-mask.png: this mask has 40 x 96 pixels and its picture 96 x 80"):
        train(star, tmp_path, **on)
    spot(box=(0, 0, 0, 0)).save(tmp_path / "a-mask.png")
    with pytest.raises(UserError, match="its mask leaves nothing of the picture"):
        train(star, tmp_path, **on)
    spot(box=(0, 0, 16, 80)).save(tmp_path / "a-mask.png")  # 96 x 80, of which a square keeps the middle
    tight = {**on, "pictures.buckets": False, "pictures.variants": 64, "pictures.crop_jitter": 0.5}
    with pytest.raises(UserError, match="the crop cuts off all that its mask leaves"):
        train(star, tmp_path, **tight)
    (tmp_path / "a-mask.png").write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match=r"a-mask.png: this picture cannot be read"):
        train(star, tmp_path, **on)
