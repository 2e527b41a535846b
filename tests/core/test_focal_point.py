"""The crop that a person has chosen: a small file beside the picture, or one clear sentence about it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreambooth.core import focal_point
from dreambooth.core.errors import UserError
from dreambooth.core.focal_point import FocalPoint


def written(folder: Path, content: bytes) -> Path:
    (folder / "a.focus").write_bytes(content)
    return folder / "a.jpg"


@given(st.floats(0, 1), st.floats(0, 1), st.floats(1, 100))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, x: float, y: float, zoom: float) -> None:
    point = FocalPoint.of({"x": x, "y": y, "zoom": zoom})
    assert (point.x, point.y, point.zoom) == pytest.approx((x, y, zoom), abs=1e-4)
    folder = tmp_path_factory.getbasetemp()
    assert focal_point.read(written(folder, focal_point.text(point).encode())) == point


def test_without_a_file_the_crop_is_automatic_and_a_hand_may_write_one(tmp_path: Path) -> None:
    assert focal_point.read(tmp_path / "a.jpg") is None
    assert focal_point.read(written(tmp_path, b'\xef\xbb\xbf{"y": 1, "x": 0}\r\n')) == FocalPoint(0, 1)
    assert focal_point.text(FocalPoint(0.5, 0.25)) == '{"x": 0.5, "y": 0.25}\n', "no zoom where none was chosen"


@pytest.mark.parametrize(
    "content",
    [b"", b"null", b"[0.5, 0.5]", b'"0.5 0.5"', b'{"x": 0.5}', b'{"x": "0.5", "y": 0.5}', b'{"x": 0.5, "y": NaN}',
     b'{"x": true, "y": 0.5}', b'{"x": 1.01, "y": 0.5}', b'{"x": 0.5, "y": -0.1}', b'{"x": 0.5, "y": 0.5, "zoom": 0.5}',
     b'{"x": 0.5, "y": 0.5, "z": 1}', b'{"x": 1e999, "y": 0}', b"\xff\xfe{", b"[" * 5000, b'{"x": 0.5, "y": 0.5'],
)  # fmt: skip
def test_what_holds_no_crop_is_one_sentence_with_its_mend(tmp_path: Path, content: bytes) -> None:
    picture = written(tmp_path, content)
    with pytest.raises(UserError) as told:
        focal_point.read(picture)
    (sentence,) = told.value.problems
    assert sentence.startswith(f"{tmp_path / 'a.focus'}: it holds no crop")
    assert told.value.errors[0].where == str(tmp_path / "a.focus") and "remove the file" in told.value.errors[0].do


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes among files")
def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.focus")
    assert focal_point.read(tmp_path / "a.jpg") is None


def test_numbers_that_will_not_do_are_all_told_where_they_were_given() -> None:
    with pytest.raises(UserError) as told:
        FocalPoint.of({"x": 2, "zoom": 0}, {"zoom": "--zoom"})
    assert [one.partition(":")[0] for one in told.value.problems] == ["x", "y", "--zoom"]
