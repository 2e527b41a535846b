"""What a run will cost, as the page's head shows it: in words, and as a bar of the card's memory that moves with every
control.
"""

from __future__ import annotations

from html import escape

from dreambooth.core.formatting import duration, memory, size
from dreambooth.core.memory import headroom
from dreambooth.service.cost import Cost
from dreambooth.ui.page.fragments import sentence_list


def cost_view(costs: Cost, card_bytes: int) -> str:
    """`card_bytes` is 0 where no card is known; then the memory is said without a bar."""
    needs = _needs(costs.memory_bytes, card_bytes) if costs.memory_bytes else ""
    return f'<p class="db-cost">{escape(" · ".join(_words(costs)))}</p>{needs}{sentence_list(costs.no_room)}'


def _words(costs: Cost) -> list[str]:
    if costs.length is None:
        return ["No pictures yet"]
    pictures = "1 picture" if costs.pictures == 1 else f"{costs.pictures:,} pictures"
    parts = [pictures, f"{costs.length.steps:,} steps"]
    if count := costs.class_pictures:
        exactly, at_most = f"before them {count:,} class pictures", f"before them up to {count:,} class pictures"
        parts.append(at_most if costs.or_fewer else exactly)
    if costs.seconds:
        parts.append(f"≈ {duration(costs.seconds)}")
    if costs.disk_bytes:
        parts.append(f"{size(costs.disk_bytes)} disk")
    return parts


def _needs(needed: int, card: int) -> str:
    if not card:
        return f'<p class="db-needs">Needs about {memory(needed)} of memory</p>'
    fits = needed <= headroom.usable(card)
    text = f"Needs about {memory(needed)} of {memory(card)}"
    after = "" if fits else ", more than the card can give; Performance sets what fits"
    percent = min(100.0, needed / card * 100)
    return (
        f'<div class="db-needs{"" if fits else " db-too-much"}"><span>{text}{after}</span>'
        f'<div class="db-bar" role="meter" aria-label="{text}" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{percent:.0f}"><i style="width:{percent:.1f}%"></i></div></div>'
    )
