"""Every picture lands in exactly one bucket, the one that cuts off least, and no bucket is larger than the square."""

from __future__ import annotations

from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreambooth.core.buckets import Bucket, Grid, grid, nearest
from dreambooth.core.errors import UserError
from dreambooth.core.settings.dataset import Pictures

SIDES = st.integers(1, 6000)
RESOLUTIONS = st.integers(1, 20).map(lambda n: 64 * n)
CHOICES = st.builds(Pictures, buckets=st.booleans(), bucket_step=st.sampled_from([64, 32, 16, 8]))


@given(CHOICES, RESOLUTIONS, SIDES, SIDES)
def test_a_picture_lands_in_the_one_bucket_that_is_nearest(
    choice: Pictures, side: int, width: int, height: int
) -> None:
    made = grid(choice, side)
    chosen = made.bucket(width, height)
    assert made.buckets.count(chosen) == 1

    def distance(one: Bucket) -> float:
        return abs(log(one.width / one.height) - log(width / height))

    assert distance(chosen) <= min(map(distance, made.buckets))


@given(CHOICES, RESOLUTIONS)
def test_buckets_are_of_whole_steps_within_bounds_and_no_larger_than_the_square(choice: Pictures, side: int) -> None:
    made = grid(choice, side)
    assert Bucket(side, side) in made.buckets
    for one in made.buckets:
        assert one.area <= side * side
        assert one.width % choice.bucket_step == one.height % choice.bucket_step == 0
        assert side / 2 <= one.width <= side * 2
        assert Bucket(one.height, one.width) in made.buckets
    assert choice.buckets or len(made.buckets) == 1


@given(CHOICES, RESOLUTIONS, SIDES, SIDES)
def test_without_enlarging_only_pictures_below_the_smallest_side_grow(
    choice: Pictures, side: int, width: int, height: int
) -> None:
    made = Grid(grid(choice, side).buckets, choice.bucket_step, choice.bucket_step, no_upscale=True)
    chosen = made.bucket(width, height)
    assert chosen.width <= max(width, made.smallest)
    assert chosen.height <= max(height, made.smallest)
    assert chosen.width % choice.bucket_step == chosen.height % choice.bucket_step == 0
    assert choice.buckets or chosen.width == chosen.height
    if width >= 2 * side and height >= 2 * side:
        assert chosen == grid(choice, side).bucket(width, height)


def test_the_buckets_of_512() -> None:
    shapes = [str(one) for one in grid(Pictures(), 512).buckets]
    assert shapes[:5] == ["256x832", "256x896", "256x960", "256x1024", "320x704"]
    assert "640x384" in shapes
    assert len(shapes) == 17


@pytest.mark.parametrize(("name", "value"), [("bucket_min_side", 640), ("bucket_max_side", 448)])
def test_bounds_that_leave_out_the_square_are_refused(name: str, value: int) -> None:
    with pytest.raises(UserError, match=f"pictures.{name}: {value}"):
        grid(Pictures(**{name: value}), 512)


@pytest.mark.parametrize(
    ("name", "value", "size", "expected"),
    [
        ("bucket_step", 16, (900, 500), "672x384"),
        ("bucket_min_side", 448, (2000, 400), "576x448"),
        ("bucket_max_side", 640, (2000, 400), "640x256"),
        ("no_upscale", True, (400, 300), "384x256"),
    ],
)
def test_each_setting_changes_where_a_picture_lands(
    name: str, value: int, size: tuple[int, int], expected: str
) -> None:
    plain, chosen = (str(grid(Pictures(**changes), 512).bucket(*size)) for changes in ({}, {name: value}))
    assert chosen == expected != plain


def test_without_buckets_every_picture_is_cut_square() -> None:
    assert {grid(Pictures(buckets=False), 512).bucket(*size) for size in ((2000, 400), (512, 512), (300, 900))} == {
        Bucket(512, 512)
    }


@pytest.mark.parametrize(("low", "longest"), [(0, 1024), (128, 1024), (384, 640)])
def test_no_side_is_longer_than_twice_the_resolution(low: int, longest: int) -> None:
    shapes = grid(Pictures(bucket_min_side=low, bucket_step=64), 512).buckets
    assert max(side for one in shapes for side in (one.width, one.height)) == longest


def test_a_picture_of_just_a_buckets_size_needs_no_enlarging() -> None:
    found = grid(Pictures(no_upscale=True), 512)
    assert all(found.bucket(one.width, one.height) == one for one in found.buckets)


def test_of_equally_near_buckets_the_largest_is_taken() -> None:
    assert nearest(300, 300, (Bucket(64, 64), Bucket(128, 128))) == Bucket(128, 128)
