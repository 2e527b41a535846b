"""Any picture that a person has: upright, RGB, cropped in the middle; what cannot be read is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreambooth.core.errors import UserError
from dreambooth.core.settings import Concept
from dreambooth.engine.data import pictures


def test_the_centre_is_kept_and_the_rest_cut(tmp_path: Path) -> None:
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste("blue", (100, 0, 200, 100))
    wide.save(tmp_path / "x.png")
    loaded = pictures.load(tmp_path / "x.png", 64)
    assert loaded.size == (64, 64)
    assert np.asarray(loaded).reshape(-1, 3).mean(0) == pytest.approx([0, 0, 255], abs=6)


def test_a_photo_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    photo = Image.new("RGB", (64, 64), "white")
    photo.paste("black", (0, 0, 64, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn right
    photo.save(tmp_path / "x.jpg", exif=exif)
    turned = np.asarray(pictures.load(tmp_path / "x.jpg", 64).convert("L"))
    assert turned[:, 40:].mean() < 20 < 230 < turned[:, :24].mean()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1", "CMYK", "I;16", "RGB"])
def test_every_kind_of_picture_becomes_rgb(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((32, 32), 65535, dtype=np.uint16))
    else:
        image = Image.new("RGB", (32, 32), "white").convert(mode)
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    image.save(path)
    loaded = pictures.load(path, 32)
    assert loaded.mode == "RGB"
    assert np.asarray(loaded).min() > 240


def test_what_is_transparent_lies_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (32, 32), (255, 0, 0, 0)).save(tmp_path / "x.png")
    assert np.asarray(pictures.load(tmp_path / "x.png", 32)).min() == 255


def test_the_first_picture_of_an_animation_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert np.asarray(pictures.load(tmp_path / "x.gif", 32))[0, 0].tolist() == pytest.approx([255, 0, 0], abs=3)


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n half")
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    concepts = [Concept(str(tmp_path), "x"), Concept("", "x"), Concept(str(tmp_path / "no"), "")]
    with pytest.raises(UserError) as caught:
        pictures.instance_pictures(concepts)
    said = "\n".join(caught.value.problems)
    for part in ("cut.png", "concepts.1.instance_data_dir: it is empty", "concepts.2.instance_prompt", "no folder"):
        assert part in said


def test_a_caption_that_is_no_text_is_named(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match=r"a\.txt"):
        pictures.instance_pictures([Concept(str(tmp_path), "[filewords]")])


def test_hidden_files_and_folders_below(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for name in ("b.png", "a.PNG", ".hidden.png", "below/c.jpg", "note.txt"):
        (tmp_path / name).touch()
    assert [p.name for p in pictures.find(tmp_path)] == ["a.PNG", "b.png", "c.jpg"]
