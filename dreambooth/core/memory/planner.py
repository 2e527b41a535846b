"""Which settings make a training fit a card, and why: the quickest that fits, from the table of footprint.

What changes nothing of what is learned comes first, then what costs time, then another optimizer. A batch is halved
only with twice as many halves added up to the same step. Nothing here lowers the resolution: that is said, not done.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dreambooth.core.errors import UserError
from dreambooth.core.memory import footprint
from dreambooth.core.memory.footprint import SPARE, Memory
from dreambooth.core.memory.levers import LEVERS, TURNED, Changes, Lever, trains_streamed
from dreambooth.core.models.anatomy import Anatomy
from dreambooth.core.quantities import memory
from dreambooth.core.settings import Settings, conflicts

CARDS = tuple(gigabytes * 2**30 for gigabytes in (4, 6, 8, 12, 16, 24))
QUICKEST: dict[str, Any] = {
    "batching.gradient_checkpointing": False,
    "memory.checkpointed_share": 1.0,
    "memory.attention": "sdpa",
}


@dataclass(frozen=True)
class Plan:
    """What to set for a card: `changes` to the settings that were given, what is then needed, and the reasons."""

    changes: Changes
    needs: Memory
    needed_before: Memory
    usable: int
    fits: bool
    reasons: list[str]

    @property
    def why(self) -> str:
        return " ".join(self.reasons)


def plan(settings: Settings, model: Anatomy, family: str, area: int, card_bytes: int, *, to_draw: bool = True) -> Plan:
    """The quickest way to train that fits a card of so many bytes, or the smallest where none does. `to_draw` is as in
    `footprint.needs`."""
    usable = int(card_bytes * (1 - SPARE))

    def needed(some: Settings) -> Memory:
        return footprint.needs(some, model, family, area, to_draw=to_draw)

    def fits(some: Settings) -> bool:
        return needed(some).total <= usable

    chosen, pulled = with_changes(settings, QUICKEST), list[tuple[Lever, Changes]]()
    while not fits(chosen) and (step := _next(chosen, LEVERS, needed)):
        pulled.append(step)
        chosen = with_changes(chosen, step[1])
    chosen, pulled = _without_the_needless(settings, pulled, fits) if fits(chosen) else (chosen, pulled)
    changes = difference(settings, chosen)
    after, before = needed(chosen), needed(settings)
    fit, words = after.total <= usable, chosen.is_embedding
    reasons = _reasons(pulled, changes, after, card_bytes, fits=fit, is_embedding=words)
    if lying := footprint.computer_bytes(chosen, model):
        reasons.append(f"What is streamed takes about {memory(lying)} of the computer's own memory.")
    return Plan(changes, after, before, usable, fit, reasons)


def for_family(settings: Settings, family: str, card_bytes: int) -> Plan:
    """The same for a model of full size of a family, from the settings alone."""
    side = settings.general.resolution or footprint.OWN_RESOLUTION[family]
    return plan(settings, footprint.full_size(family), family, side**2, card_bytes)


def advice(made: Plan) -> str:
    """What to say of settings that do not fit as they are; empty where they do."""
    if made.needed_before.total <= made.usable:
        return ""
    flags = " ".join(f"--{key} {value}" for key, value in made.changes.items())
    begin = f"As it is set, it needs more than this machine's card can give, {memory(made.usable)}."
    return f"{begin} With {flags}: {made.why}" if made.fits else f"{begin} {made.why}"


def smaller(settings: Settings) -> tuple[Changes, str] | None:
    """The next thing that takes less memory with which a run can go on from its last state; None where none is left."""
    for lever in LEVERS:
        if lever.keeps and (changes := lever.pull(settings)) and not conflicts.found(with_changes(settings, changes)):
            return changes, lever.named(changes)
    return None


def card_size(text: str) -> int:
    """'8GB', '8 GiB', '8' -> bytes. Cards are sold in powers of two. Raises UserError for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:gi?b?)?\s*", text, re.IGNORECASE)
    if not found or not 1 <= float(found[1]) <= 1024:
        raise UserError(f"--card: {text!r} is no size of a card; give it in gigabytes, such as 8GB.")
    return int(float(found[1]) * 2**30)


def with_changes(settings: Settings, changes: Changes) -> Settings:
    """The settings with some of them changed, by their dotted keys; the others are shared."""
    for key, value in changes.items():
        group, name = key.split(".")
        settings = replace(settings, **{group: replace(getattr(settings, group), **{name: value})})
    return settings


def difference(before: Settings, after: Settings) -> Changes:
    """What of the settings that levers turn is another."""
    keys = (*QUICKEST, *TURNED)
    old, new = ({key: _value(some, key) for key in keys} for some in (before, after))
    return {key: value for key, value in new.items() if value != old[key]}


def _next(
    settings: Settings, levers: Sequence[Lever], needed: Callable[[Settings], Memory]
) -> tuple[Lever, Changes] | None:
    """The first lever that gives something here."""
    total = needed(settings).total
    for lever in levers:
        changes = lever.pull(settings)
        if not changes:
            continue
        then = with_changes(settings, changes)
        if needed(then).total < total and not conflicts.found(then):
            return lever, changes
    return None


def _without_the_needless(
    settings: Settings, pulled: list[tuple[Lever, Changes]], fits: Callable[[Settings], bool]
) -> tuple[Settings, list[tuple[Lever, Changes]]]:
    """Takes back what is not needed any more after later levers, the dearest in time first."""
    for at in reversed(range(len(pulled))):
        if pulled[at][0].lightens and trains_streamed(_all(settings, pulled)):
            continue
        fewer = pulled[:at] + pulled[at + 1 :]
        chosen = _all(settings, fewer)
        if fits(chosen) and not conflicts.found(chosen):
            pulled = fewer
    return _all(settings, pulled), pulled


def _all(settings: Settings, pulled: list[tuple[Lever, Changes]]) -> Settings:
    chosen = with_changes(settings, QUICKEST)
    for _, changes in pulled:
        chosen = with_changes(chosen, changes)
    return chosen


def _reasons(
    pulled: list[tuple[Lever, Changes]],
    changes: Changes,
    after: Memory,
    card_bytes: int,
    *,
    fits: bool,
    is_embedding: bool,
) -> list[str]:
    card = f"a card of {card_bytes / 2**30:g} GB"
    reasons, final = [], dict(change for _, done in pulled for change in done.items())
    for lever, done in pulled:
        if any(final[key] != value for key, value in done.items()):
            continue  # a later one went further
        named = lever.named(done)
        reasons.append(f"{named[:1].upper()}{named[1:]}{f': {lever.costs}' if lever.costs else ''}.")
    if not pulled and "batching.gradient_checkpointing" in changes:
        reasons.append("Gradient checkpointing off: there is room, and it would cost a third more time.")
    if fits:
        return [f"Needs about {memory(after.total)}, which {card} has.", *reasons]
    most = max(vars(after).items(), key=lambda part: part[1])[0]
    other = "" if is_embedding else "a LoRA of a smaller rank, "
    return [
        f"Needs about {memory(after.total)} even so, more than {card} can give; most of it are the {most}. Take a "
        f"larger card, {other}or a smaller general.resolution.",
        *reasons,
    ]


def _value(settings: Settings, key: str) -> Any:
    group, name = key.split(".")
    return getattr(getattr(settings, group), name)
