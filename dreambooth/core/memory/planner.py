"""Which settings make a training fit a GPU, and why: the quickest that fit, by the estimate of footprint.py.

The savings that cost nothing come first, then those that cost time, then another optimizer. A batch is halved only with
twice the gradient accumulation, for the same steps. The resolution is never lowered: that is only advised.
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
from dreambooth.core.memory.savings import CHANGED_KEYS, SAVINGS, Changes, Saving, trains_streamed
from dreambooth.core.models.anatomy import Anatomy
from dreambooth.core.models.families import RESOLUTIONS
from dreambooth.core.settings import Settings, conflicts
from dreambooth.core.values import plain

CARDS = tuple(gigabytes * 2**30 for gigabytes in (4, 6, 8, 12, 16, 24))
QUICKEST: dict[str, Any] = {
    "batching.gradient_checkpointing": False,
    "memory.checkpointed_share": 1.0,
    "memory.attention": "sdpa",
    "memory.unet_weights": "whole",
}
_SMALL_CARD, _LARGE_PICTURE = 8 * 2**30, 1024**2  # bytes; pixels
_REASONS = {  # for changes that were made before any saving
    "batching.gradient_checkpointing": "Gradient checkpointing off: there is room, and it would cost a third more time",
    "memory.unet_weights": "The UNet's weights whole on the card: there is room, and none need be fetched or unpacked",
    "memory.vae_decoding": "Pictures decoded in tiles: on a small card there is no telling that a whole one has room",
    "memory.step_in_backward": "The optimizer's step after the backward pass: there is room for all gradients",
}


@dataclass(frozen=True)
class Plan:
    """What to change of settings so that they fit a GPU, the memory that they need then and before, and the reasons."""

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
        return " ".join(f"--{key} {plain(value)}" for key, value in self.changes.items())


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
    """The quickest settings that fit a card of so many bytes, or the smallest where none do.

    `area`, `to_draw` and `cached` are those of `footprint.needs`.
    """
    usable = headroom.usable(card_bytes)
    in_tiles = card_bytes <= _SMALL_CARD and footprint.preview_area(settings, area) >= _LARGE_PICTURE
    start = _quickest(settings, in_tiles=in_tiles)

    def needed(candidate: Settings) -> Memory:
        return footprint.needs(candidate, model, family, area, to_draw=to_draw, cached=cached)

    def fits(candidate: Settings) -> bool:
        return needed(candidate).total <= usable and not conflicts.found(candidate)

    chosen, applied = start, list[tuple[Saving, Changes]]()
    while not fits(chosen) and (step := _next(chosen, SAVINGS, needed)):
        applied.append(step)
        chosen = with_changes(chosen, step[1])
    if fits(chosen):
        chosen, applied = _without_the_needless(start, applied, fits)
    changes = difference(settings, chosen)
    after, before = needed(chosen), needed(settings)
    fit = after.total <= usable
    reasons = _reasons(applied, changes, chosen, after, card_bytes, fits=fit)
    if streamed := footprint.computer_bytes(chosen, model):
        reasons.append(f"What is streamed takes about {memory(streamed)} of the computer's own memory.")
    return Plan(changes, after, before, usable, fit, reasons)


def for_family(settings: Settings, family: str, card_bytes: int) -> Plan:
    """The plan for a model of full size of a family, at the settings' resolution or the family's own."""
    side = settings.general.resolution or RESOLUTIONS[family]
    return plan(settings, footprint_table.full_size(family), family, side**2, card_bytes)


def advice(proposed: Plan) -> str:
    """What to say of settings that do not fit as they are; empty where they do."""
    if proposed.needed_before.total <= proposed.usable:
        return ""
    begin = f"As it is set, it needs more than this machine's card can give, {memory(proposed.usable)}."
    return f"{begin} With {proposed.flags}: {proposed.why}" if proposed.fits else f"{begin} {proposed.why}"


def next_saving(
    settings: Settings, needed: Callable[[Settings], int], *, must_be_counted: bool = False
) -> tuple[Changes, str] | None:
    """The next changes, and their name, with which a run can go on from its last state in less memory; None where none
    is left.

    `needed` counts the bytes that settings take. It counts not everything, so that a saving is mostly taken on trust;
    `must_be_counted` has it lower the count.
    """
    before = needed(settings)
    for saving in SAVINGS:
        if not saving.resumable or not (changes := saving.propose(settings)):
            continue
        then = with_changes(settings, changes)
        is_counted = must_be_counted or saving.may_not_help
        if is_counted and needed(then) >= before:
            continue
        if not conflicts.found(then):
            return changes, saving.named(changes)
    return None


def card_size(text: str, *, label: str = "--card") -> int:
    """'8GB', '8 GiB', '8' -> bytes. Cards are sold in powers of two.

    Raises UserError for anything else; `label` is what its sentence calls the text.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:gi?b?)?\s*", text, re.IGNORECASE)
    if not match or not 1 <= float(match[1]) <= 1024:
        raise UserError(f"{label}: {text!r} is no size of a card; give it in gigabytes, such as 8GB.")
    return int(float(match[1]) * 2**30)


def with_changes(settings: Settings, changes: Changes) -> Settings:
    """The settings with some of them changed, by their dotted keys; the others are shared."""
    for key, value in changes.items():
        group, name = key.split(".")
        settings = replace(settings, **{group: replace(getattr(settings, group), **{name: value})})
    return settings


def difference(before: Settings, after: Settings) -> Changes:
    """The settings that a plan may change and that differ, as they are `after`."""
    keys = (*QUICKEST, *CHANGED_KEYS)
    return {key: _value(after, key) for key in keys if _value(after, key) != _value(before, key)}


def _next(
    settings: Settings, savings: Sequence[Saving], needed: Callable[[Settings], Memory]
) -> tuple[Saving, Changes] | None:
    """The first saving that lowers what these settings need."""
    total = needed(settings).total
    for saving in savings:
        changes = saving.propose(settings)
        if not changes:
            continue
        then = with_changes(settings, changes)
        if needed(then).total < total and not conflicts.found(then):
            return saving, changes
    return None


def _without_the_needless(
    start: Settings, applied: list[tuple[Saving, Changes]], fits: Callable[[Settings], bool]
) -> tuple[Settings, list[tuple[Saving, Changes]]]:
    """The settings and savings without those that later ones have made needless; the costliest are left out first."""
    for index in reversed(range(len(applied))):
        if applied[index][0].speeds_streaming and trains_streamed(_with_all(start, applied)):
            continue
        fewer = applied[:index] + applied[index + 1 :]
        if fits(_with_all(start, fewer)):
            applied = fewer
    return _with_all(start, applied), applied


def _quickest(settings: Settings, *, in_tiles: bool) -> Settings:
    """The settings without all that costs time and that savings can change back."""
    in_backward = {"memory.step_in_backward": False} if settings.is_full else {}
    return with_changes(settings, {**QUICKEST, **in_backward, **({"memory.vae_decoding": "tiled"} if in_tiles else {})})


def _with_all(chosen: Settings, applied: list[tuple[Saving, Changes]]) -> Settings:
    for _, changes in applied:
        chosen = with_changes(chosen, changes)
    return chosen


def _reasons(
    applied: list[tuple[Saving, Changes]],
    changes: Changes,
    chosen: Settings,
    after: Memory,
    card_bytes: int,
    *,
    fits: bool,
) -> list[str]:
    card = f"a card of {card_bytes / 2**30:g} GB"
    reasons, final = [], dict(change for _, changed in applied for change in changed.items())
    for saving, changed in applied:
        if any(final[key] != value for key, value in changed.items()):
            continue  # a later one went further
        name = saving.named(changed)
        reasons.append(f"{name[:1].upper()}{name[1:]}{f': {saving.costs}' if saving.costs else ''}.")
        if "checkpointing" not in saving.name and any("checkpoint" in key for key in changed):
            reasons.append("Gradient checkpointing, which that needs: about a third more time.")
    reasons += [f"{reason}." for key, reason in _REASONS.items() if key in changes and key not in final]
    if fits:
        return [f"Needs about {memory(after.total)}, which {card} has.", *reasons]
    most = max(vars(after).items(), key=lambda part: part[1])[0]
    begin = f"Needs about {memory(after.total)} even so, more than {card} can give; most of it are the {most}."
    return [f"{begin} Take a larger card, {_instead(chosen, most)}or a smaller general.resolution.", *reasons]


def _instead(chosen: Settings, most: str) -> str:
    """What else could be chosen where nothing fits; `most` is the largest part of Memory."""
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
