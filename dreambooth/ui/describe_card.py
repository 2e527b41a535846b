"""What was measured on a card, in tables for people."""

from __future__ import annotations

from typing import Any

from dreambooth.core.checkpoint import FAMILIES
from dreambooth.core.quantities import memory
from dreambooth.ui.terminal import table

Result = dict[str, Any]
WITHIN = 0.1  # of what was measured; the estimate is to be as near


def plans(result: Result) -> str:
    lines = [plan_table(result["rows"]), "", plan_verdict(result["rows"])]
    if result["left"]:
        lines.append(f"{result['left']} plans were not reached in the time; the same command goes on with them.")
    return "\n".join([*lines, f"Written: {result['path']}"])


def plan_table(rows: list[Result]) -> str:
    head = ["model", "method", "card", "planned", "measured", "planned to measured", "allocator held", "context"]
    lines = [[*head, "a step (s)", "in the end", "set"]]
    for one in rows:
        seen = measured(one)
        if seen:
            sizes = [memory(seen["peak_bytes"]), f"{planned_to_measured(one):.2f}"]
            sizes += [memory(seen["reserved_bytes"]), memory(seen["context_bytes"])]
        else:
            sizes = [""] * 4
        step = seen["step_seconds"] if seen else None
        ended = f"as on {one['as_on'] / 2**30:g} GB" if "as_on" in one else one["ended"]
        if "without_limit" in one:
            ended += " (measured without a limit)"
        lines.append(
            [
                FAMILIES[one["family"]],
                one["method"],
                f"{one['card_bytes'] / 2**30:g} GB",
                memory(one["planned"]["total"]),
                *sizes,
                f"{step:.3f}" if step else "",
                ended,
                " ".join(f"{key.split('.')[1]}={value}" for key, value in one["changes"].items()) or "as it is",
            ]
        )
    return table(lines)


def plan_verdict(rows: list[Result]) -> str:
    """How many plans held, and how many estimates were as near as they are to be."""
    tried = [one for one in rows if one["ended"] not in ("not planned", "out of time") and "as_on" not in one]
    held = sum(one["ended"] == "held" for one in tried)
    ratios = [ratio for one in tried if (ratio := planned_to_measured(one))]
    near = sum(abs(ratio - 1) <= WITHIN for ratio in ratios)
    return (
        f"{held} of {len(tried)} plans held in their card; "
        f"the estimate was within {WITHIN:.0%} of the measured peak in {near} of {len(ratios)}."
    )


def planned_to_measured(one: Result) -> float:
    """0 where nothing was measured."""
    seen = measured(one)
    return float(one["planned"]["total"] / seen["peak_bytes"]) if seen else 0.0


def measured(one: Result) -> Result | None:
    """What a whole run needed: of a plan that did not hold, that without a limit."""
    seen = one.get("without_limit", one)
    return seen if seen["ended"] == "held" else None
