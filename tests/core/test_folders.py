"""Folders that a person has moved: noted once, found by everybody."""

from __future__ import annotations

from pathlib import Path

import pytest

from dreambooth.core.errors import UserError
from dreambooth.core.project import Folders


def test_what_is_moved_is_found_by_whoever_looks_next(tmp_path: Path) -> None:
    models = tmp_path / "models"
    moved = Folders(models).moved(loras=tmp_path / "l", checkpoints=models / "Stable-diffusion", projects=None)
    for folders in (moved, Folders(models)):
        assert folders.loras == tmp_path / "l"
        assert folders.checkpoints == models / "Stable-diffusion"
        assert folders.projects == models / "dreambooth"
    assert moved.moved(loras=models / "Lora").loras == Folders(models).loras == models / "Lora"


def test_nothing_is_written_where_nothing_is_moved(tmp_path: Path) -> None:
    Folders(tmp_path).moved(loras=None, checkpoints=None, projects=tmp_path / "dreambooth")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "[]", "{", '{"loras": 3}', '"x"'])
def test_a_damaged_note_moves_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "dreambooth").mkdir()
    (tmp_path / "dreambooth" / "folders.json").write_text(text)
    assert Folders(tmp_path).loras == tmp_path / "Lora"


def test_a_note_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "dreambooth").write_text("a file")
    with pytest.raises(UserError, match=r"folders\.json: the file cannot be written"):
        Folders(tmp_path).moved(loras=tmp_path / "l")


def test_two_webuis_with_flags_of_their_own_keep_them_beside_each_other(tmp_path: Path) -> None:
    first = Folders(tmp_path).moved(loras=tmp_path / "first")
    second = Folders(tmp_path).moved(loras=tmp_path / "second", checkpoints=tmp_path / "c")
    third = Folders(tmp_path).moved()
    assert [one.loras.name for one in (first, second, third)] == ["first", "second", "Lora"]
    assert [one.checkpoints.name for one in (first, second)] == ["Stable-diffusion", "c"]
    assert Folders(tmp_path).loras == third.loras
