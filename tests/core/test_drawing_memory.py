"""How many pictures are drawn together: as many as there is room for, and the bar and Performance know of it."""

from __future__ import annotations

from typing import Any

import pytest

from dreambooth.core.memory import footprint_table, planner
from dreambooth.core.memory.drawing_memory import LEAST, MOST, USED, Drawing, decoding_bytes, most_together
from dreambooth.core.settings import parse
from tests.footprints import family_needs

GB = 2**30
XL = Drawing(footprint_table.full_size("sdxl"), "sdxl", "half", 1024**2)


def test_as_many_as_there_is_room_for() -> None:
    numbers = [XL.fitting(free * GB, 1000, 16) for free in (0, 4, 6, 8, 12, 24)]
    assert numbers == sorted(numbers)
    assert numbers[0] == 1, "one is always tried"
    assert numbers[-1] == 16
    for free, number in zip((6, 8, 12), numbers[2:]):
        assert XL.bytes(number) <= USED * free * GB
    wider = Drawing(XL.model, "sdxl", "no", XL.area)
    assert wider.bytes(32) > XL.bytes(32) > Drawing(XL.model, "sdxl", "half", XL.area, guided=False).bytes(32)


@pytest.mark.parametrize(("wanted", "parts"), [(20, 10), (16, 16), (17, 9), (3, 3), (1, 1), (0, 1)])
def test_parts_are_of_about_the_same_size(wanted: int, parts: int) -> None:
    assert XL.fitting(100 * GB, wanted, 16) == parts


def test_what_goes_on_goes_on_with_as_many() -> None:
    """A little more or less memory than before changes nothing; much more, or too little, does."""
    free = next(free for free in range(GB, 99 * GB, GB // 8) if XL.fitting(free, 1000, 64) == 20)
    assert XL.fitting(0.93 * free, 1000, 64) < 20
    assert XL.fitting(0.93 * free, 1000, 64, before=20) == 20
    assert XL.fitting(1.2 * free, 1000, 64, before=20) == 20
    assert XL.fitting(0.6 * free, 1000, 64, before=20) < 20, "it would not fit"
    assert XL.fitting(3 * free, 1000, 64, before=20) > 20, "what was drawn when memory was short"


def test_decoding() -> None:
    one, four = (decoding_bytes(1024**2, count, "whole") for count in (1, 4))
    assert four == 4 * one
    assert one < decoding_bytes(1024**2, 4, "sliced") < 1.1 * one
    assert decoding_bytes(1024**2, 4, "tiled") < 0.3 * one
    assert decoding_bytes(256**2, 1, "tiled") == decoding_bytes(256**2, 1, "sliced")


def test_no_more_than_a_device_is_quicker_with() -> None:
    assert most_together(512**2, on_card=True) == 16
    assert most_together(64**2, on_card=True) == MOST
    assert most_together(64**2, on_card=False) == 16
    assert most_together(2048**2, on_card=True) == most_together(512**2, on_card=False) == LEAST


def needed(**flat: Any) -> int:
    about = {"concepts.0.class_prompt": "a dog", "concepts.0.num_class_images_per": 10}
    return family_needs(parse({**about, **flat}), "sdxl").total


def test_a_number_of_ones_own_counts_in_what_is_needed() -> None:
    small = {"batching.gradient_checkpointing": True, "memory.unet_weights": "streamed"}
    automatic = needed(**small)
    assert needed(**small, **{"batching.class_batch_size": 1}) == automatic
    assert needed(**small, **{"batching.class_batch_size": 64}) > automatic + 10e9
    without = {"previews.count": 0, "concepts.0.num_class_images_per": 0}
    assert needed(**small, **without, **{"batching.class_batch_size": 64}) == needed(**small, **without)


def test_performance_leaves_it_to_the_free_memory_where_it_is_too_much() -> None:
    about = {"concepts.0.class_prompt": "a dog", "concepts.0.num_class_images_per": 10}
    made = planner.for_family(parse({**about, "batching.class_batch_size": 64}), "sdxl", 8 * GB)
    assert made.fits
    assert made.changes["batching.class_batch_size"] == 0
    assert "As many pictures drawn together as there is room for" in made.why
    large = planner.for_family(parse({**about, "batching.class_batch_size": 8}), "sdxl", 24 * GB)
    assert "batching.class_batch_size" not in large.changes


def test_whole_weights_under_autocast_are_there_twice_while_previews_are_drawn() -> None:
    flat = {"general.method": "full", "memory.step_in_backward": True, "batching.gradient_checkpointing": True}
    with_previews, without = (family_needs(parse({**flat, "previews.count": count}), "sd1").total for count in (1, 0))
    assert with_previews - without > 0.8e9
