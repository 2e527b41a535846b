"""The names of a UNet's blocks, and how a choice of them is written."""

from __future__ import annotations

import pytest

from dreambooth.core.errors import UserError
from dreambooth.core.models import unet_blocks
from dreambooth.core.settings import parse

ALL = [f"IN{n:02d}" for n in range(12)] + ["MID"] + [f"OUT{n:02d}" for n in range(12)]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ALL),
        (" , ", ALL),
        ("IN04", ["IN04"]),
        ("in4,Out3", ["IN04", "OUT03"]),
        ("MID", ["MID"]),
        ("M00", ["MID"]),
        ("mid, in", [*ALL[:12], "MID"]),
        ("out", ALL[13:]),
        ("IN10-OUT01", ALL[10:15]),
        ("IN10 - IN11, IN10", ALL[10:12]),
        ("IN05-IN05", ["IN05"]),
    ],
)
def test_a_choice_is_names_ranges_and_sides(text: str, names: list[str]) -> None:
    assert unet_blocks.problem(text) == ""
    assert sorted(unet_blocks.chosen(text, ALL), key=unet_blocks.place) == names
    assert unet_blocks.missing(text, ALL) == []


@pytest.mark.parametrize("text", ["IN12", "OUT99", "BASE", "down", "OUT03-", "-IN03", "OUT01-IN04", "in-out", "1"])
def test_what_is_none_is_refused_with_what_would_be_one(text: str) -> None:
    with pytest.raises(UserError, match=r"^lora\.blocks: .* is no block of a UNet; write names such as IN04, ") as told:
        parse({"lora.blocks": f"MID, {text}"})
    assert repr(text) in str(told.value)
    assert unet_blocks.problem(text)


def test_what_is_not_there_is_named() -> None:
    there = ["IN04", "IN05", "MID", "OUT00"]
    assert unet_blocks.missing("IN05, IN07, OUT01-OUT05, mid, in, IN00-IN11", there) == ["IN07", "OUT01-OUT05"]
    assert unet_blocks.chosen("IN05-MID, IN07", there) == {"IN05", "MID"}


def test_it_needs_a_unet() -> None:
    off = {"tuning.train_unet": False, "tuning.text_encoder_ratio": 1.0}
    with pytest.raises(UserError, match=r"lora\.blocks: they are the UNet's, and tuning\.train_unet is off; leave it"):
        parse({"lora.blocks": "IN04", **off})
    parse({"lora.blocks": "IN04", "general.method": "full", **off})
    with pytest.raises(UserError, match=r"lora\.blocks: the LoRA of lora\.start_file has its own"):
        parse({"lora.blocks": "IN04", "lora.start_file": "a.safetensors"})


def test_a_strange_models_names_do_no_harm() -> None:
    """A file may hold anything."""
    found = unet_blocks.by_name(["input_blocks.99.0.weight", "down_blocks.x.resnets.0.weight", "out.0.weight", ""])
    assert found == {"input_blocks.99.0.weight": "IN99"}
    assert unet_blocks.chosen("in", found.values()) == set()
