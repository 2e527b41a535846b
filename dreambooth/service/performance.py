"""Which settings fit a card, and putting them into a model's own: the same for the page, the API and the commands."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

from dreambooth.core import engine_capabilities, settings
from dreambooth.core.errors import UserError
from dreambooth.core.memory import planner
from dreambooth.core.memory.planner import Plan
from dreambooth.core.models import anatomy, checkpoint
from dreambooth.core.models.families import FAMILIES
from dreambooth.core.project import Project
from dreambooth.core.settings import Settings
from dreambooth.core.values import plain
from dreambooth.service import cost, models, settings_lock

_METHODS = ("lora", "full", "embedding")
_ANY_WORD = "sks"  # for what is counted of words that learn, where none is chosen


def card_bytes(named: str, *, label: str) -> int:
    """A card of the size that was named, `8GB`; this machine's where none was, and 0 where there is none. Raises
    UserError for what is no size."""
    return planner.card_size(named, label=label) if named else engine_capabilities.card_bytes()


def of_model(opened: Project, chosen: Settings, card: int, *, label: str) -> Plan:
    """What to set for a card of so many bytes. Raises UserError where no card is known, or the model's file is gone."""
    if not card:
        raise UserError(f"{label}: no card is known here; say how much memory it has, such as 8GB.")
    model, family = anatomy.of(checkpoint.read_header(opened.source)), opened.about["family"]
    draws, pixels = cost.to_draw(opened, chosen), cost.area(opened, chosen)
    return planner.plan(chosen, model, family, pixels, card, to_draw=draws)


def for_model(
    opened: Project,
    over: Callable[[dict[str, Any]], Mapping[str, Any]],
    card: int,
    *,
    label: str,
    to_apply: bool,
) -> Plan:
    """The plan for a model's own settings with what `over` puts over them; `to_apply` makes those settings its own,
    with the plan's changes."""
    with settings_lock.changing(opened) if to_apply else contextlib.nullcontext():
        flat = over(opened.settings())
        plan = of_model(opened, settings.parse(dict(flat)), card, label=label)
        if to_apply:
            models.write_settings(opened, {**flat, **plan.changes})
    return plan


def of_every_family(chosen: Settings, card: int) -> list[dict[str, Any]]:
    """A plan for each family and method, of models of full size; of each usual size of a card where `card` is 0."""
    plans = []
    for family in FAMILIES:
        for method in _METHODS:
            changed = planner.with_changes(chosen, {"general.method": method})
            changed.concepts = [
                replace(one, instance_token=one.instance_token or _ANY_WORD) for one in changed.concepts
            ]
            for size in [card] if card else planner.CARDS:
                plan = planner.for_family(changed, family, size)
                plans.append({"family": family, "method": method, "card_bytes": size, **as_json(plan)})
    return plans


def answer(opened: Project, plan: Plan, card: int, *, applied: bool) -> dict[str, Any]:
    """A model's plan as the API and the commands answer it."""
    return {"name": opened.name, "card_bytes": card, "applied": applied, **as_json(plan)}


def as_json(plan: Plan) -> dict[str, Any]:
    return {
        "fits": plan.fits,
        "why": plan.why,
        "changes": plan.changes,
        "flags": [f"--{key} {plain(value)}" for key, value in plan.changes.items()],
        "needs": {**asdict(plan.needs), "total": plan.needs.total},
        "needed_before": {**asdict(plan.needed_before), "total": plan.needed_before.total},
    }
