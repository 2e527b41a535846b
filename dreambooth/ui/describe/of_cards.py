"""What was measured on a card, in tables for people."""

from __future__ import annotations

from typing import Any

from dreambooth.core.formatting import memory
from dreambooth.core.models.families import FAMILIES
from dreambooth.ui.terminal import table

Result = dict[str, Any]
WITHIN = 0.1  # of what was measured; the estimate is to be as near


def plans(result: Result) -> str:
    lines = [plan_table(result["rows"]), "", plan_verdict(result["rows"]), *_warned(result["rows"])]
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


def _warned(rows: list[Result]) -> list[str]:
    """What the runs warned of, which may be why one took longer or more."""
    return [
        f"{FAMILIES[one['family']]} {one['method']} on {one['card_bytes'] / 2**30:g} GB: {said}"
        for one in rows
        for said in one.get("warnings", ())
        if "as_on" not in one
    ]


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


def card(result: Result) -> str:
    """The figures with their goals; what of them is reached."""
    about, lines = [], [["", "", "measured", "goal", ""]]
    for one in result["rows"]:
        if isinstance(one["value"], str):
            about.append(f"{one['what']}: {one['value']}")
        else:
            lines.append([one["piece"], one["what"], _value(one["value"], one["unit"]), *_goal(one)])
    parts = [] if result["large"] else ["There is no card here: miniatures on the CPU, which say nothing of one."]
    warned = [f"{one['what']}: {said}" for one in result["rows"] for said in one.get("warnings", ())]
    parts += ["\n".join(about), table(lines), *warned]
    if result["plans"]:
        parts += [plan_table(result["plans"]), plan_verdict(result["plans"]), *_warned(result["plans"])]
    if result["left"]:
        left = ", ".join(result["left"])
        parts.append(f"Not ended: {left}. The same command goes on with these (why is in card.log).")
    return "\n\n".join([*parts, f"Written: {result['path']}"])


def _goal(one: Result) -> list[str]:
    """What a figure is to be, and whether it is."""
    most, least = one.get("goal"), one.get("at_least")
    if most is None and least is None:
        return ["", ""]
    text = f"at most {_value(most, one['unit'])}" if least is None else f"at least {_value(least, one['unit'])}"
    if one["value"] is None:
        return [text, one.get("ended") or one.get("why") or "not measured"]
    reached = one["value"] <= most if least is None else one["value"] >= least
    return [text, "reached" if reached else "NOT REACHED"]


def _value(value: Any, unit: str) -> str:
    if value is None:
        return ""
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    return f"{shown} {unit}".rstrip()
