"""Which pictures are in a folder, wherever it is asked: for training, on the page and by scripts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dreambooth.core import captions, focal_point, picture_files
from dreambooth.core.migrate.report import Seen
from dreambooth.core.settings.dataset import Concept
from dreambooth.service import import_paths, pictures
from tests.conftest import CAN_LINK


def _make(folder: Path, *names: str) -> None:
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")


def test_masks_and_hidden_files_are_no_pictures(tmp_path: Path) -> None:
    _make(tmp_path, "a.jpg", "a-mask.png", "masks/a.png", "b/c.PNG", "b/c-masklabel.png", "b/masks/c.png")
    _make(tmp_path, ".d.png", ".e/f.png", "__MACOSX/a.jpg", "__MACOSX_a.jpg", "notes.txt")
    _make(tmp_path, "no-mask.png", "masks/of-none.png")
    shown = ["a.jpg", "b/c.PNG", "masks/of-none.png", "no-mask.png"]
    assert picture_files.names(tmp_path) == pictures.names(tmp_path) == shown
    assert picture_files.find(tmp_path) == [tmp_path / name for name in shown]
    assert picture_files.names(tmp_path / "masks") == ["a.png", "of-none.png"]


def test_what_is_held_out_is_the_same_on_the_page_and_in_training(tmp_path: Path) -> None:
    _make(tmp_path, *(f"{n}.jpg" for n in range(9)), *(f"{n}-mask.png" for n in range(9)))
    concept = Concept(instance_data_dir=str(tmp_path), held_out=2)
    shown = [tmp_path / name for name in pictures.names(tmp_path)]
    trained = picture_files.held_out(concept, picture_files.of_concept(concept), 3)
    assert picture_files.held_out(concept, shown, 3) == trained and len(trained) == 2


def test_what_is_no_file_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    _make(tmp_path, "a.png")
    if os.name != "nt":
        os.mkfifo(tmp_path / "pipe.png")
    if CAN_LINK:
        (tmp_path / "circle.png").symlink_to("circle.png")
        (tmp_path / "gone.png").symlink_to("none")
        (tmp_path / "link.png").symlink_to("a.png")
        (tmp_path / "above").symlink_to(tmp_path)
    found = ["a.png", "link.png"] if CAN_LINK else ["a.png"]
    assert picture_files.names(tmp_path) == pictures.names(tmp_path) == found


def test_of_a_whole_disk_only_so_much_is_looked_at(tmp_path: Path) -> None:
    _make(tmp_path, *(f"{n}/{m}.png" for n in range(9) for m in range(9)))
    assert len(picture_files.names(tmp_path, 9 + 20)) == 20


@pytest.mark.skipif(os.name == "nt", reason="there a path has fewer letters than a name may have")
@pytest.mark.parametrize("ending", captions.PICTURES)
def test_the_longest_name_leaves_no_room_for_another_beside_it(tmp_path: Path, ending: str) -> None:
    picture = tmp_path / f"{'x' * (255 - len(ending))}{ending}"
    picture.write_bytes(b"")
    assert captions.beside(picture) is None and focal_point.read(picture) is None
    assert pictures.listing(tmp_path)["pictures"][0]["caption"] is None


def test_a_folder_that_is_named_too_long_to_be_one_is_none(tmp_path: Path) -> None:
    too_long = tmp_path / ("x" * 300)
    concept = Concept(instance_data_dir=str(too_long), instance_prompt="a photo of sks dog")
    assert picture_files.of_concept(concept) == []
    assert picture_files.problems([concept]) == [f"concepts.0.instance_data_dir: there is no folder {too_long}."]
    assert import_paths.looker(tmp_path)(str(too_long)) == Seen()
