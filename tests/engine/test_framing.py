"""Crops lie inside the picture, follow from seed and name, and hold the subject where they are told to look for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from dreambooth.core.buckets import Bucket, grid
from dreambooth.core.settings.dataset import Pictures
from dreambooth.engine.data import focus, framing
from dreambooth.engine.data.framing import Cut, apply, cuts

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

    def boxes(name: str, seed: int) -> list[framing.Box]:
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


@pytest.mark.parametrize("count", [1, 2, 6])
def test_there_are_as_many_variants_as_are_asked_for(count: int) -> None:
    assert framing.variants(Pictures(rotation=5, variants=count), (64, 64), SQUARE) == count
    assert framing.variants(Pictures(hflip=True, variants=count), (64, 64), SQUARE) == min(2, count)
    assert framing.variants(Pictures(variants=count), (64, 64), SQUARE) == 1  # with nothing to vary


def test_a_flip_mirrors() -> None:
    picture = noise(64, 64)
    made = apply(picture, Cut(SQUARE, (0, 0, 64, 64), (64, 64), mirrored=True))
    assert np.array_equal(np.asarray(made), np.asarray(picture)[:, ::-1])


@given(st.floats(-30, 30), st.sampled_from([SQUARE, Bucket(128, 64), Bucket(64, 192)]))
def test_turning_brings_nothing_in_from_outside(degrees: float, bucket: Bucket) -> None:
    picture = Image.new("RGB", (bucket.width + 20, bucket.height + 20), "red")
    made = apply(picture, Cut(bucket, (10, 10, 10 + bucket.width, 10 + bucket.height), picture.size, degrees=degrees))
    assert made.size == (bucket.width, bucket.height)
    assert np.asarray(made).reshape(-1, 3).min(0).tolist() == [255, 0, 0]


def test_brightness_and_colour() -> None:
    picture = Image.new("RGB", (8, 8), (100, 60, 20))
    box = (0.0, 0.0, 8.0, 8.0)
    assert np.asarray(apply(picture, Cut(SQUARE, box, (8, 8), brightness=1.5)))[0, 0].tolist() == [150, 90, 30]
    grey = np.asarray(apply(picture, Cut(SQUARE, box, (8, 8), colour=0.0)))[0, 0]
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
    assert focus.find(Image.new("RGB", (300, 100), "navy"), 100, 100) == (0.5, 0.5)
