"""The blocks of a UNet, by the names that LoRA Block Weight and merging extensions give them: IN00 to IN11 on the way
down, MID, and OUT00 to OUT11 on the way up (SDXL: to IN08 and OUT08), numbered as in the original layout.

A choice of blocks is written as names (OUT03), ranges (IN04-MID) and whole sides (in, mid, out) with commas between.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

LAST = 11  # of each side, in the largest UNet of this layout
_NAME = re.compile(r"(IN|OUT)([0-9]+)|MID|M00", re.IGNORECASE)
_SIDES = ("in", "mid", "out")  # in the order of their turns
_ORIGINAL = re.compile(r"(input|output)_blocks\.([0-9]+)\.")
_DIFFUSERS = re.compile(r"(down|up)_blocks\.([0-9]+)\.(resnets|attentions|downsamplers|upsamplers)\.([0-9]+)(?:\.|$)")

Place = tuple[int, int]  # side and number, in the order in which blocks have their turns


def by_name(names: Iterable[str]) -> dict[str, str]:
    """{name: its block} of a UNet's weights or layers, in either layout; those that are in no block are left out."""
    names = list(names)
    matches = [(name, _DIFFUSERS.match(name)) for name in names]
    numbers = [int(m[4]) for _, m in matches if m and m[1] == "down" and m[3] == "resnets"]
    step = max(numbers, default=0) + 2  # residual blocks of a level, and what halves or doubles the picture
    found = {}
    for name, own in matches:
        if own:
            found[name] = _of_diffusers(own, step)
        elif name.startswith(("mid_block.", "middle_block.")):
            found[name] = "MID"
        elif name.startswith("conv_in."):
            found[name] = _called("IN", 0)
        elif original := _ORIGINAL.match(name):
            found[name] = _called("IN" if original[1] == "input" else "OUT", int(original[2]))
    return found


def _of_diffusers(match: re.Match[str], step: int) -> str:
    side, level, what, number = match[1], int(match[2]), match[3], int(match[4])
    if what.endswith("samplers"):  # upward it belongs to the last residual block of its level
        number = step - 1
    return _called("IN", 1 + level * step + number) if side == "down" else _called("OUT", level * step + number)


def _called(side: str, number: int) -> str:
    return f"{side}{number:02d}"


def problem(text: str) -> str:
    """Why a text is no choice of blocks; empty where it is one."""
    for item in _items(text):
        try:
            _places(item)
        except ValueError:
            return (
                f"{item!r} is no block of a UNet; write names such as IN04, MID or OUT03, ranges such as IN04-OUT02, "
                "or in, mid and out, with commas between"
            )
    return ""


def chosen(text: str, there: Iterable[str]) -> set[str]:
    """Which of the blocks that are there a choice names; all where it is empty."""
    there, items = set(there), _items(text)
    return {block for block in there for item in items if _holds(item, block)} if items else there


def missing(text: str, there: Iterable[str]) -> list[str]:
    """What of a choice names none of the blocks that are there."""
    there = list(there)
    return [item for item in _items(text) if not any(_holds(item, block) for block in there)]


def place(block: str) -> Place:
    """Where a block stands in the order in which they have their turns. Raises ValueError for what is none."""
    found = _NAME.fullmatch(block)
    if not found:
        raise ValueError(block)
    if found[1] is None:
        return 1, 0
    return (0 if found[1].upper() == "IN" else 2), int(found[2])


def _items(text: str) -> list[str]:
    return [item for item in (part.strip() for part in text.split(",")) if item]


def _holds(item: str, block: str) -> bool:
    first, last = _places(item)
    return first <= place(block) <= last


def _places(item: str) -> tuple[Place, Place]:
    """The first and the last place that an item of a choice means. Raises ValueError for what means none."""
    if item.lower() in _SIDES:
        side = _SIDES.index(item.lower())
        return (side, 0), (side, LAST)
    first, dash, last = item.partition("-")
    ends = place(first.strip()), place(last.strip() if dash else first.strip())
    if ends[0] > ends[1] or max(number for _, number in ends) > LAST:
        raise ValueError(item)
    return ends
