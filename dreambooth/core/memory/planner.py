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
from dreambooth.core.formatting import memory
from dreambooth.core.memory import footprint, footprint_table, headroom
from dreambooth.core.memory.footprint import OPTIMIZER_BYTES, Memory
from dreambooth.core.memory.savings import LEVERS, TURNED, Changes, Lever, trains_streamed
from dreambooth.core.models.anatomy import Anatomy
from dreambooth.core.models.families import RESOLUTIONS
from dreambooth.core.settings import Settings, conflicts

CARDS = tuple(gigabytes * 2**30 for gigabytes in (4, 6, 8, 12, 16, 24))
QUICKEST: dict[str, Any] = {
    "batching.gradient_checkpointing": False,
    "memory.checkpointed_share": 1.0,
    "memory.attention": "sdpa",
    "memory.unet_weights": "whole",
}
_SMALL_CARD, _LARGE_PICTURE = 8 * 2**30, 1024**2  # bytes; pixels
_SAID = {  # of what was changed before any lever
    "batching.gradient_checkpointing": "Gradient checkpointing off: there is room, and it would cost a third more time",
    "memory.unet_weights": "The UNet's weights whole on the card: there is room, and none need be fetched or unpacked",
    "memory.vae_decoding": "Pictures decoded in tiles: on a small card there is no telling that a whole one has room",
    "memory.step_in_backward": "The optimizer's step after the backward pass: there is room for all gradients",
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

    @property
    def flags(self) -> str:
        """The changes as the command line takes them."""
        said = {key: str(value).lower() if isinstance(value, bool) else value for key, value in self.changes.items()}
        return " ".join(f"--{key} {value}" for key, value in said.items())


def plan(
    settings: Settings,
    model: Anatomy,
    family: str,
    area: int,
    card_bytes: int,
    *,
    to_draw: bool = True,
    cached: int = 0,
) -> Plan:
    """The quickest way to train that fits a card of so many bytes, or the smallest where none does. `to_draw` and
    `known` are as in `footprint.needs`."""
    usable = headroom.usable(card_bytes)
    in_tiles = card_bytes <= _SMALL_CARD and footprint.preview_area(settings, area) >= _LARGE_PICTURE
    start = _quickest(settings, in_tiles=in_tiles)

    def needed(some: Settings) -> Memory:
        return footprint.needs(some, model, family, area, to_draw=to_draw, cached=cached)

    def fits(some: Settings) -> bool:
        return needed(some).total <= usable and not conflicts.found(some)

    chosen, pulled = start, list[tuple[Lever, Changes]]()
    while not fits(chosen) and (step := _next(chosen, LEVERS, needed)):
        pulled.append(step)
        chosen = with_changes(chosen, step[1])
    chosen, pulled = _without_the_needless(start, pulled, fits) if fits(chosen) else (chosen, pulled)
    changes = difference(settings, chosen)
    after, before = needed(chosen), needed(settings)
    fit = after.total <= usable
    reasons = _reasons(pulled, changes, chosen, after, card_bytes, fits=fit)
    if lying := footprint.computer_bytes(chosen, model):
        reasons.append(f"What is streamed takes about {memory(lying)} of the computer's own memory.")
    return Plan(changes, after, before, usable, fit, reasons)


def for_family(settings: Settings, family: str, card_bytes: int) -> Plan:
    """The same for a model of full size of a family, from the settings alone."""
    side = settings.general.resolution or RESOLUTIONS[family]
    return plan(settings, footprint_table.full_size(family), family, side**2, card_bytes)


def advice(made: Plan) -> str:
    """What to say of settings that do not fit as they are; empty where they do."""
    if made.needed_before.total <= made.usable:
        return ""
    begin = f"As it is set, it needs more than this machine's card can give, {memory(made.usable)}."
    return f"{begin} With {made.flags}: {made.why}" if made.fits else f"{begin} {made.why}"


def next_saving(
    settings: Settings, needed: Callable[[Settings], int], *, must_be_counted: bool = False
) -> tuple[Changes, str] | None:
    """The next changes, and their name, with which a run can go on from its last state in less memory; None where none
    is left.

    `needed` counts the bytes that settings take. It counts not everything, so that a saving is mostly taken on trust;
    `must_be_counted` has it lower the count.
    """
    before = needed(settings)
    for lever in LEVERS:
        if not lever.keeps or not (changes := lever.pull(settings)):
            continue
        then = with_changes(settings, changes)
        helps = needed(then) < before if must_be_counted or lever.may_take_more else True
        if helps and not conflicts.found(then):
            return changes, lever.named(changes)
    return None


def card_size(text: str, *, label: str = "--card") -> int:
    """'8GB', '8 GiB', '8' -> bytes. Cards are sold in powers of two. Raises UserError for anything else, in a sentence
    that calls it by the `label`."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:gi?b?)?\s*", text, re.IGNORECASE)
    if not found or not 1 <= float(found[1]) <= 1024:
        raise UserError(f"{label}: {text!r} is no size of a card; give it in gigabytes, such as 8GB.")
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
    start: Settings, pulled: list[tuple[Lever, Changes]], fits: Callable[[Settings], bool]
) -> tuple[Settings, list[tuple[Lever, Changes]]]:
    """Takes back what is not needed any more after later levers, the dearest in time first."""
    for at in reversed(range(len(pulled))):
        if pulled[at][0].lightens and trains_streamed(_all(start, pulled)):
            continue
        fewer = pulled[:at] + pulled[at + 1 :]
        chosen = _all(start, fewer)
        if fits(chosen):
            pulled = fewer
    return _all(start, pulled), pulled


def _quickest(settings: Settings, *, in_tiles: bool) -> Settings:
    """The settings without what costs time and a plan can ask for again."""
    in_backward = {"memory.step_in_backward": False} if settings.is_full else {}
    return with_changes(settings, {**QUICKEST, **in_backward, **({"memory.vae_decoding": "tiled"} if in_tiles else {})})


def _all(chosen: Settings, pulled: list[tuple[Lever, Changes]]) -> Settings:
    for _, changes in pulled:
        chosen = with_changes(chosen, changes)
    return chosen


def _reasons(
    pulled: list[tuple[Lever, Changes]],
    changes: Changes,
    chosen: Settings,
    after: Memory,
    card_bytes: int,
    *,
    fits: bool,
) -> list[str]:
    card = f"a card of {card_bytes / 2**30:g} GB"
    reasons, final = [], dict(change for _, done in pulled for change in done.items())
    for lever, done in pulled:
        if any(final[key] != value for key, value in done.items()):
            continue  # a later one went further
        named = lever.named(done)
        reasons.append(f"{named[:1].upper()}{named[1:]}{f': {lever.costs}' if lever.costs else ''}.")
        if "checkpointing" not in lever.name and any("checkpoint" in key for key in done):
            reasons.append("Gradient checkpointing, which that needs: about a third more time.")
    reasons += [f"{said}." for key, said in _SAID.items() if key in changes and key not in final]
    if fits:
        return [f"Needs about {memory(after.total)}, which {card} has.", *reasons]
    most = max(vars(after).items(), key=lambda part: part[1])[0]
    begin = f"Needs about {memory(after.total)} even so, more than {card} can give; most of it are the {most}."
    return [f"{begin} Take a larger card, {_instead(chosen, most)}or a smaller general.resolution.", *reasons]


def _instead(chosen: Settings, most: str) -> str:
    """What else could be chosen where nothing fits, most of which goes to one of the parts of Memory."""
    if chosen.is_embedding:
        return ""
    light = OPTIMIZER_BYTES["adamw_8bit"]
    heavy = most == "optimizer" and OPTIMIZER_BYTES[chosen.optimizer.name] > light
    other = f"another optimizer, such as adamw_8bit, which keeps {light:g} bytes of each value where " if heavy else ""
    other += f"{chosen.optimizer.name} keeps {footprint.optimizer_bytes(chosen):.3g}, " if heavy else ""
    return f"{other}{'a LoRA' if chosen.is_full else 'a LoRA of a smaller rank'}, "


def _value(settings: Settings, key: str) -> Any:
    group, name = key.split(".")
    return getattr(getattr(settings, group), name)
