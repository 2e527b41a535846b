"""Pictures that are dropped on a concept: each keeps its own words and its own folder, whatever they are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from dreambooth.core import project
from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import MINIATURE, SUBJECT_PICTURES
from dreambooth.core.project import Folders, Project
from dreambooth.service import uploads

ONE, TWO, THREE = (file.read_bytes() for file in sorted(SUBJECT_PICTURES.glob("*.png"))[:3])


@pytest.fixture
def opened(tmp_path: Path) -> Project:
    return project.create(Folders(tmp_path / "models"), "star", MINIATURE)


@pytest.fixture
def hand(tmp_path: Path) -> _Hand:
    return _Hand(tmp_path / "hand")


class _Hand:
    """Files from somewhere else, each from a folder of its own."""

    def __init__(self, place: Path) -> None:
        self.place, self.count = place, 0

    def __call__(self, **contents: bytes | str) -> list[Path]:
        files = []
        for name, content in contents.items():
            self.count += 1
            file = self.place / str(self.count) / name.replace("__", ".")
            file.parent.mkdir(parents=True)
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
            files.append(file)
        return files


def _there(folder: str) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


def test_a_picture_keeps_its_caption_where_another_has_its_name(opened: Project, hand: _Hand) -> None:
    first = uploads.take_in(opened, "", hand(a__png=ONE))
    taken = uploads.take_in(opened, first.folder, hand(a__png=TWO, a__txt="two"))
    assert taken.folder == first.folder and not taken.kept
    assert _there(taken.folder) == {"a.png": ONE, "a-2.png": TWO, "a-2.txt": b"two"}
    taken = uploads.take_in(opened, first.folder, hand(a__jpg=THREE, a__txt="two"))
    assert {"a-3.jpg", "a-3.txt"} < set(_there(taken.folder)), "its words are not left out, though others have the same"


def test_what_is_dropped_again_is_there_once_and_its_words_stay(opened: Project, hand: _Hand) -> None:
    first = uploads.take_in(opened, "", hand(a__png=ONE, a__txt="one"))
    (Path(first.folder) / "a.txt").write_text("changed on the page")
    taken = uploads.take_in(opened, first.folder, hand(a__png=ONE, a__txt="one"))
    assert _there(taken.folder) == {"a.png": ONE, "a.txt": b"changed on the page"}
    assert taken.kept == ["a.txt"]


def test_captions_masks_and_crops_find_their_picture(opened: Project, hand: _Hand) -> None:
    first = uploads.take_in(opened, "", hand(a__png=ONE))
    uploads.take_in(opened, first.folder, hand(a__txt="one", b__txt="two"))
    crop = '{"x": 0.2, "y": 0.5}'
    uploads.take_in(opened, first.folder, [*hand(b__png=TWO), *hand(**{"b-mask__png": THREE, "b__focus": crop})])
    assert set(_there(first.folder)) == {"a.png", "a.txt", "b.png", "b-mask.png", "b.txt", "b.focus"}
    taken = uploads.take_in(opened, first.folder, hand(c__txt="three"))
    uploads.take_in(opened, taken.folder, hand(c__png=THREE, c__txt="another three"))
    assert {"c.txt", "c-2.png", "c-2.txt"} < set(_there(first.folder)) and "c.png" not in _there(first.folder)


def test_pictures_of_one_name_from_several_folders(opened: Project, hand: _Hand) -> None:
    taken = uploads.take_in(opened, "", [*hand(a__png=ONE, a__txt="one"), *hand(a__png=TWO, a__txt="two")])
    assert _there(taken.folder) == {"a.png": ONE, "a.txt": b"one", "a-2.png": TWO, "a-2.txt": b"two"}


def test_concepts_share_no_folder(opened: Project, hand: _Hand) -> None:
    first = uploads.take_in(opened, "", hand(a__png=ONE))
    second = uploads.take_in(opened, "", hand(a__png=TWO))
    third = uploads.take_in(opened, str(hand.place), hand(a__png=THREE))  # it had a folder of the person's own
    assert len({first.folder, second.folder, third.folder}) == 3
    assert uploads.take_in(opened, second.folder, hand(b__png=ONE)).folder == second.folder


def test_what_is_no_picture_is_left_out(opened: Project, hand: _Hand) -> None:
    assert uploads.take_in(opened, "", hand(a__png=ONE, desktop__ini="")).strange == ["desktop.ini"]
    with pytest.raises(UserError, match=r"^notes, desktop\.ini: these are no pictures or captions"):
        uploads.take_in(opened, "", hand(notes="", desktop__ini=""))


def test_of_two_pictures_of_one_name_the_other_keeps_the_caption(opened: Project, hand: _Hand, tmp_path: Path) -> None:
    taken = uploads.take_in(opened, "", hand(a__png=ONE, a__jpg=TWO, a__txt="of both"))
    folder, folders = Path(taken.folder), Folders(tmp_path / "models")
    assert set(_there(taken.folder)) == {"a.png", "a.jpg", "a.txt"}
    uploads.take_away(folders, opened, folder, "a.jpg")
    assert set(_there(taken.folder)) == {"a.png", "a.txt"}
    uploads.take_away(folders, opened, folder, "a.png")
    assert not _there(taken.folder)


def test_a_picture_goes_to_the_trash_with_everything_of_its_own(opened: Project, hand: _Hand, tmp_path: Path) -> None:
    taken = uploads.take_in(opened, "", hand(a__png=ONE, a__txt="one"))
    folder = Path(taken.folder)
    (folder / "masks").mkdir()
    (folder / "masks" / "a.png").write_bytes(TWO)
    (folder / "a.caption").write_text("passed over until now")
    (folder / "below").mkdir()
    (folder / "below" / "a.png").write_bytes(THREE)
    moved = uploads.take_away(Folders(tmp_path / "models"), opened, folder, "a.png")
    assert moved.read_bytes() == ONE and (moved.parent / "masks" / "a.png").read_bytes() == TWO
    assert {file.name for file in moved.parent.iterdir()} == {"a.png", "a.txt", "a.caption", "masks"}
    assert {file.name for file in folder.rglob("*") if file.is_file()} == {"a.png"}, "the one below"


def test_a_caption_that_another_system_gives_to_both_stays(opened: Project, hand: _Hand, tmp_path: Path) -> None:
    taken = uploads.take_in(opened, "", hand(A__jpg=ONE))
    folder = Path(taken.folder)
    (folder / "a.png").write_bytes(TWO)
    (folder / "a.txt").write_text("on Windows of both")
    uploads.take_away(Folders(tmp_path / "models"), opened, folder, "a.png")
    assert set(_there(taken.folder)) == {"A.jpg", "a.txt"}


def test_a_picture_with_the_longest_name_can_be_taken_away(opened: Project, hand: _Hand, tmp_path: Path) -> None:
    name, folders = f"{'ä' * 125}x.png", Folders(tmp_path / "models")
    taken = uploads.take_in(opened, "", hand(**{name: ONE}))
    for number in ("", " 2"):
        (Path(taken.folder) / name).write_bytes(ONE)
        moved = uploads.take_away(folders, opened, Path(taken.folder), name)
        assert moved.name == name and moved.parent.name.startswith("star ää") and moved.parent.name.endswith(number)
    assert not _there(taken.folder) and len(list(folders.trash.iterdir())) == 2
