"""The tags of a caption, the parts between commas: which stay in front, which change places, and which are left out."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from dreambooth.core import emphasis

if TYPE_CHECKING:
    from dreambooth.core.settings.dataset import Captions


def parted(text: str, *, weighted: bool = False) -> list[str]:
    """The parts between commas; where weights are read, (red hair, smile:1.2) is one part."""
    held = emphasis.in_brackets(text) if weighted else []
    commas = [n for n, sign in enumerate(text) if sign == "," and not any(start < n < end for start, end in held)]
    edges = zip([-1, *commas], [*commas, len(text)])
    return [tag for start, end in edges if (tag := text[start + 1 : end].strip())]


def vary(options: Captions) -> bool:
    """Whether tags change places or are left out at all."""
    return options.variants > 1 and (options.shuffle_tags or options.tag_dropout > 0)


def arranged(line: str, options: Captions, source: random.Random) -> str:
    """The line with its tags as they are drawn, and without the signs that say how they may be."""
    if vary(options):
        front, middle, back = _parts(line, options)
        if options.shuffle_tags:
            source.shuffle(middle)
        if options.tag_dropout:
            stay = {_name(tag, options) for tag in parted(options.tag_dropout_except, weighted=options.weighted)}
            middle = [tag for tag in middle if source.random() >= options.tag_dropout or _names(tag, options) & stay]
        line = ", ".join([*front, *middle, *back])
    for sign in filter(None, (options.keep_marker.strip(), options.tie.strip())):
        line = line.replace(sign, ", ")
    return line


def _parts(line: str, options: Captions) -> tuple[list[str], list[str], list[str]]:
    """The tags that stay in front, those that may move or go, and those that stay at the end."""
    marker = options.keep_marker.strip()
    if marker and marker in line:
        front, middle, back = (parted(part, weighted=options.weighted) for part in [*line.split(marker, 2), ""][:3])
        return front, middle, back
    found = parted(line, weighted=options.weighted)
    return found[: options.keep_tags], found[options.keep_tags :], []


def _names(tag: str, options: Captions) -> set[str]:
    """What a tag is called, or each of several that are tied."""
    tie = options.tie.strip()
    return {_name(one, options) for one in (tag.split(tie) if tie else [tag])}


def _name(tag: str, options: Captions) -> str:
    return emphasis.bare(tag, weighted=options.weighted).strip().casefold()
