"""Crops lie inside the picture, follow from seed and name, and hold the subject where they are told to look for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from dreambooth.core.buckets import Bucket, grid
from dreambooth.core.focal_point import FocalPoint
from dreambooth.core.settings.dataset import Pictures
from dreambooth.engine.data import cropping, saliency
from dreambooth.engine.data.cropping import Crop, apply, cuts

SQUARE = Bucket(64, 64)
AUGMENTED: dict[str, Any] = {"hflip": True, "rotation": 10.0, "brightness": 0.3, "colour": 0.3, "crop_jitter": 0.3}


def no_look() -> Image.Image:
    raise AssertionError("only a smart crop looks at the picture")


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@given(
    st.integers(1, 5000),
    st.integers(1, 5000),
    st.sampled_from(["centre", "random", "smart"]),
    st.booleans(),
    st.integers(0, 2**31 - 1),
    st.floats(0, 0.5),
)
def test_every_crop_lies_inside_the_picture_and_has_its_buckets_shape(
    width: int, height: int, crop: Any, buckets: bool, seed: int, jitter: float
) -> None:
    choice = Pictures(crop=crop, buckets=buckets, crop_jitter=jitter, variants=3)
    bucket = grid(choice, 512).bucket(width, height)
    for cut in cuts("x.png", (width, height), bucket, choice, seed, lambda: noise(16, 16)):
        left, top, right, bottom = cut.box
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        assert (right - left) / (bottom - top) == pytest.approx(bucket.width / bucket.height, rel=1e-6)


@pytest.mark.parametrize("size", [(300, 100), (100, 300), (301, 77)])
def test_the_centre_is_kept_and_the_rest_cut(size: tuple[int, int]) -> None:
    (cut,) = cuts("x.png", size, SQUARE, Pictures(), 0, no_look)
    short = min(size)
    left, top = (size[0] - short) / 2, (size[1] - short) / 2
    assert cut.box == pytest.approx((left, top, left + short, top + short))
    picture = Image.new("RGB", size, "red")
    picture.paste("blue", (round(left), round(top), round(left) + short, round(top) + short))
    made = apply(picture, cut)
    assert made.size == (64, 64)
    assert np.asarray(made).reshape(-1, 3).mean(0) == pytest.approx([0, 0, 255], abs=6)


def test_with_all_off_there_is_one_variant_and_it_is_the_picture() -> None:
    picture = noise(64, 64)
    (cut,) = cuts("x.png", (64, 64), SQUARE, Pictures(), 1, no_look)
    assert np.array_equal(np.asarray(apply(picture, cut)), np.asarray(picture))


def test_a_random_crop_follows_from_the_seed_and_the_name_and_differs_between_variants() -> None:
    choice = Pictures(crop="random")

    def boxes(name: str, seed: int) -> list[cropping.Box]:
        return [cut.box for cut in cuts(name, (300, 100), SQUARE, choice, seed, no_look)]

    assert boxes("a.png", 1) == boxes("a.png", 1)
    assert len(set(boxes("a.png", 1) + boxes("b.png", 1) + boxes("a.png", 2))) == 12
    assert len(cuts("a.png", (100, 100), SQUARE, choice, 1, no_look)) == 1  # there is nothing to move


@pytest.mark.parametrize("name", AUGMENTED)
def test_each_augmentation_changes_the_variants_but_not_the_first(name: str) -> None:
    picture = noise(200, 200)
    choice = Pictures(**{name: AUGMENTED[name]})
    plain, *others = (
        np.asarray(apply(picture, cut)) for cut in cuts("x", (200, 200), SQUARE, choice, 4, lambda: picture)
    )
    assert len(others) == (1 if name == "hflip" else 3)
    (off,) = cuts("x", (200, 200), SQUARE, Pictures(), 4, no_look)
    assert np.array_equal(plain, np.asarray(apply(picture, off)))
    changed = [not np.array_equal(plain, other) for other in others]
    assert all(changed)


def test_every_second_variant_is_mirrored_where_that_is_chosen_and_none_elsewhere() -> None:
    for hflip, expected in ((True, [False, True] * 3), (False, [False] * 6)):
        choice = Pictures(**{**AUGMENTED, "hflip": hflip}, variants=6)
        assert [cut.mirrored for cut in cuts("x", (200, 200), SQUARE, choice, 4, no_look)] == expected


@pytest.mark.parametrize("count", [1, 2, 6])
def test_there_are_as_many_variants_as_are_asked_for(count: int) -> None:
    assert cropping.variants(Pictures(rotation=5, variants=count), (64, 64), SQUARE) == count
    assert cropping.variants(Pictures(hflip=True, variants=count), (64, 64), SQUARE) == min(2, count)
    assert cropping.variants(Pictures(variants=count), (64, 64), SQUARE) == 1  # with nothing to vary


def test_a_flip_mirrors() -> None:
    picture = noise(64, 64)
    made = apply(picture, Crop(SQUARE, (0, 0, 64, 64), (64, 64), mirrored=True))
    assert np.array_equal(np.asarray(made), np.asarray(picture)[:, ::-1])


def test_sdxl_is_told_where_a_crop_lies_in_the_picture_that_it_sees() -> None:
    """In pixels of the resized picture; a mirrored crop lies where it does in the mirrored picture."""
    box, source = (30.0, 10.0, 130.0, 110.0), (300, 120)
    assert Crop(SQUARE, box, source).conditions == [120, 300, 6, 19, 64, 64]
    mirrored = Crop(SQUARE, (300 - 130.0, 10.0, 300 - 30.0, 110.0), source)
    assert Crop(SQUARE, box, source, mirrored=True).conditions == mirrored.conditions == [120, 300, 6, 109, 64, 64]


@pytest.mark.parametrize("point", [None, FocalPoint(0.5, 0.5)])
def test_an_augmentation_goes_both_ways_and_as_far_as_it_says(point: FocalPoint | None) -> None:
    choice = Pictures(rotation=10.0, brightness=0.3, colour=0.2, variants=64)
    _, *made = cuts("x.png", (200, 100), SQUARE, choice, 4, no_look, point)
    for name, middle, most in (("degrees", 0, 10), ("brightness", 1, 0.3), ("colour", 1, 0.2)):
        drawn = [(getattr(cut, name) - middle) / most for cut in made]
        assert -1 <= min(drawn) < -0.8 and 0.8 < max(drawn) <= 1, name
        assert abs(sum(drawn)) < 0.25 * len(drawn), name


@pytest.mark.parametrize("bucket", [SQUARE, Bucket(128, 64), Bucket(64, 128)])
@pytest.mark.parametrize("degrees", [0.0, 25.0, -25.0])
def test_a_crop_shows_the_points_that_are_seen_in_it(bucket: Bucket, degrees: float) -> None:
    """Found out by painting a dot at each, unless the edge goes through the dot."""
    size, wide, high = (300, 200), bucket.width / 2, bucket.height / 2
    cut = Crop(bucket, (110, 40, 110 + wide, 40 + high), size, degrees=degrees)
    seen = {True: 0, False: 0}
    for number in range(21 * 21):
        x, y = 110 + wide * (number % 21 + 0.5) / 21, 40 + high * (number // 21 + 0.5) / 21
        around = [(x + 3 * across, y + 3 * down) for across in (-1, 0, 1) for down in (-1, 0, 1)]
        shown = {cut.shows(FocalPoint(one[0] / size[0], one[1] / size[1])) for one in around}
        picture = Image.new("L", size)
        ImageDraw.Draw(picture).ellipse((x - 1, y - 1, x + 1, y + 1), fill=255)
        if len(shown) == 1:
            assert bool(np.asarray(cropping.shape(picture, cut)).max() > 64) == shown.pop(), (x, y)
            seen[cut.shows(FocalPoint(x / size[0], y / size[1]))] += 1
    assert seen[True] > 50 and bool(degrees) == bool(seen[False])


@given(st.floats(-30, 30), st.sampled_from([SQUARE, Bucket(128, 64), Bucket(64, 192)]))
def test_turning_brings_nothing_in_from_outside(degrees: float, bucket: Bucket) -> None:
    picture = Image.new("RGB", (bucket.width + 20, bucket.height + 20), "red")
    made = apply(picture, Crop(bucket, (10, 10, 10 + bucket.width, 10 + bucket.height), picture.size, degrees=degrees))
    assert made.size == (bucket.width, bucket.height)
    assert np.asarray(made).reshape(-1, 3).min(0).tolist() == [255, 0, 0]


def test_brightness_and_colour() -> None:
    picture = Image.new("RGB", (8, 8), (100, 60, 20))
    box = (0.0, 0.0, 8.0, 8.0)
    assert np.asarray(apply(picture, Crop(SQUARE, box, (8, 8), brightness=1.5)))[0, 0].tolist() == [150, 90, 30]
    grey = np.asarray(apply(picture, Crop(SQUARE, box, (8, 8), colour=0.0)))[0, 0]
    assert grey.max() - grey.min() <= 1


def scene(size: tuple[int, int], middle: tuple[float, float], ground: str) -> Image.Image:
    """A round two-coloured thing on a ground that is plain, shaded, or rough all over."""
    picture = Image.new("RGB", size, (90, 140, 90))
    if ground == "shaded":
        picture = Image.merge("RGB", [Image.linear_gradient("L").resize(size).point(lambda v: v // 2)] * 3)
    elif ground == "rough":
        grain = np.random.default_rng(1).integers(70, 130, (size[1], size[0], 1)).repeat(3, 2)
        picture = Image.fromarray(grain.astype(np.uint8))
    pen, radius = ImageDraw.Draw(picture), 45
    box = [middle[0] - radius, middle[1] - radius, middle[0] + radius, middle[1] + radius]
    pen.ellipse(box, fill=(210, 60, 50))
    pen.pieslice(box, 20, 140, fill=(240, 220, 200))
    return picture


@pytest.mark.parametrize("ground", ["plain", "shaded", "rough"])
@pytest.mark.parametrize("place", [0.15, 0.4, 0.85])
@pytest.mark.parametrize("wide", [True, False])
def test_a_smart_crop_holds_a_subject_that_the_centre_would_cut(ground: str, place: float, wide: bool) -> None:
    size = (600, 200) if wide else (200, 600)
    middle = (600 * place, 100) if wide else (100, 600 * place)
    picture = scene(size, middle, ground)
    (cut,) = cuts("x", size, SQUARE, Pictures(crop="smart"), 0, lambda: picture)
    left, top, right, bottom = cut.box
    assert left <= middle[0] - 45 + 4 and right >= middle[0] + 45 - 4
    assert top <= middle[1] - 45 + 4 and bottom >= middle[1] + 45 - 4


def test_where_nothing_stands_out_the_middle_is_kept() -> None:
    assert saliency.best_window(Image.new("RGB", (300, 100), "navy"), 100, 100) == (0.5, 0.5)


POINT = st.builds(FocalPoint, st.floats(0, 1), st.floats(0, 1), st.floats(1, 20))


@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    POINT,
    st.sampled_from(["centre", "random", "smart"]),
    st.booleans(),
    st.floats(0, 0.5),
    st.floats(0, 30),
)
def test_every_variant_holds_the_point_that_was_chosen(
    width: int, height: int, point: FocalPoint, crop: Any, buckets: bool, jitter: float, rotation: float
) -> None:
    """In its middle half, as far as the picture goes on; the first around it."""
    choice = Pictures(crop=crop, buckets=buckets, crop_jitter=jitter, rotation=rotation, variants=4)
    bucket = grid(choice, 512).bucket(width, height)
    first, *others = cuts("x.png", (width, height), bucket, choice, 7, no_look, point)
    automatic = cuts("x.png", (width, height), bucket, Pictures(), 7, no_look)[0]
    assert first.enlarged <= max(1, automatic.enlarged) + 1e-6, "a tighter crop is not enlarged for it"
    for n, share in ((0, point.x), (1, point.y)):
        for cut in (first, *others):
            low, high, whole = cut.box[n], cut.box[n + 2], (width, height)[n]
            at = share * whole
            assert -1e-6 <= low <= at + 1e-6 and at - 1e-6 <= high <= whole + 1e-6
            off = abs(at - (low + high) / 2) / (high - low)
            is_at_the_edge = low <= 1e-6 or high >= whole - 1e-6
            limit = 1e-6 if cut is first else 0.25 + 1e-6
            assert off <= limit or is_at_the_edge or jitter, (off, cut.box)
    for cut in others:
        assert (cut.box[2] - cut.box[0]) / (cut.box[3] - cut.box[1]) == pytest.approx(
            bucket.width / bucket.height, rel=1e-6
        )
        assert not cut.degrees or cut.shows(point)
        assert abs(cut.degrees) <= rotation


@pytest.mark.parametrize("crop", ["centre", "smart", "random"])
def test_the_first_variant_lies_around_the_point_whatever_crops_go_by(crop: Any) -> None:
    choice = Pictures(crop=crop)
    for x, left in ((0.1, 0), (0.4, 70), (1, 200)):
        first = cuts("x", (300, 100), SQUARE, choice, 0, no_look, FocalPoint(x, 0.9))[0]
        assert first.box == pytest.approx((left, 0, left + 100, 100))
    tighter = cuts("x", (300, 100), SQUARE, choice, 0, no_look, FocalPoint(0.5, 0.5, 1.25))[0]
    assert tighter.box == pytest.approx((110, 10, 190, 90))
    most = cuts("x", (300, 100), SQUARE, choice, 0, no_look, FocalPoint(0.5, 0.5, 9))[0]
    assert most.box == pytest.approx((118, 18, 182, 82)), "64 pixels, as many as are trained"
    small = cuts("x", (50, 50), SQUARE, choice, 0, no_look, FocalPoint(0.5, 0.5, 9))[0]
    assert small.box == (0, 0, 50, 50)


def test_random_crops_around_a_point_differ_and_show_it_turned_and_mirrored() -> None:
    """A dot is painted at the point and found again in every picture that is made."""
    picture, point = Image.new("RGB", (400, 200), "white"), FocalPoint(0.3, 0.7)
    ImageDraw.Draw(picture).ellipse((114, 134, 126, 146), fill="black")
    choice = Pictures(crop="random", crop_jitter=0.5, rotation=30, hflip=True, variants=64)
    for bucket in (SQUARE, Bucket(128, 64), Bucket(64, 128)):
        made = cuts("x", picture.size, bucket, choice, 3, no_look, point)
        assert len({cut.box for cut in made}) == 64
        assert any(abs(cut.degrees) > 10 for cut in made)
        darkest = [np.asarray(apply(picture, cut).convert("L")).min() for cut in made]
        assert max(darkest) < 128


def test_a_tighter_random_crop_has_variants_where_the_whole_picture_has_none() -> None:
    choice = Pictures(crop="random", variants=3)
    assert cropping.variants(choice, (128, 128), SQUARE) == 1
    made = cuts("x", (128, 128), SQUARE, choice, 0, no_look, FocalPoint(0.5, 0.5, 2))
    assert len({cut.box for cut in made}) == 3
