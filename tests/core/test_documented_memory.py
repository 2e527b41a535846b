"""The figures of GPU memory in the documents are those that the planner gives."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from dreambooth.core.memory import footprint, footprint_table, planner
from dreambooth.core.settings import parse

ROOT = Path(__file__).resolve().parents[2]
GB = 2**30  # as cards are sold
FAMILIES = {"SD 1": "sd1", "SD 1.5": "sd1", "SD 2": "sd2", "SDXL": "sdxl"}
SIDES = {"sd1": 512, "sdxl": 1024}


def table(file: str, beginning: str) -> list[list[str]]:
    """The rows of the table whose first line begins so, without that line; an empty first cell is the one above."""
    after = (ROOT / file).read_text(encoding="utf-8").partition(f"\n{beginning}")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in after.splitlines()[2:]]
    for above, row in itertools.pairwise(rows):
        row[0] = row[0] or above[0]
    return rows


def planned(family: str, method: str, card: int) -> str:
    made = planner.for_family(parse({"general.method": method}), family, card * GB)
    return f"{made.needs.total / 1e9:.1f}"


def test_the_table_of_cards_is_the_planners() -> None:
    rows = table("docs/benchmarks.md", "| model | method | 4 GB card |")
    assert len(rows) == 6
    for model, method, *cells in rows:
        family = FAMILIES[model.split(" at ")[0]]
        told = [cell.split(":")[0] for cell in cells]
        assert told == [planned(family, method.lower(), card) for card in (4, 6, 8, 12, 16, 24)], (model, method)


def test_the_readmes_least_memory_is_the_plan_for_the_smallest_card() -> None:
    rows = table("README.md", "| | with default settings | least")
    assert len(rows) == 4
    for what, default, least, _ in rows:
        family, method = FAMILIES[re.split(r" (?:LoRA|full)", what)[0]], "full" if "full" in what else "lora"
        assert least == planned(family, method, 4), what
        assert planner.for_family(parse({"general.method": method}), family, 8 * GB).fits, what  # as is said below it
        largest = planned(family, method, 24)
        assert default == largest or f"({largest} with" in default, what


@pytest.mark.parametrize("family", SIDES)
def test_the_shares_that_are_checkpointed(family: str) -> None:
    [row] = [
        one
        for one in table("docs/benchmarks.md", "| share checkpointed |")
        if FAMILIES[one[0].split(" at ")[0]] == family
    ]
    flags = "batching.gradient_checkpointing", "memory.checkpointed_share"
    for cell, share in zip(row[1:], (0, 0.25, 0.5, 0.75, 1), strict=True):
        own = parse(dict(zip(flags, (True, share)))) if share else parse({})
        needs = footprint.training_bytes(own, footprint_table.full_size(family), family, SIDES[family] ** 2)
        assert cell.split(" GB")[0] == f"{needs / 1e9:.1f}", share
