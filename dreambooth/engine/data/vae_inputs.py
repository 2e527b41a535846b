"""What the VAE is to be given: the picture of each example as it is cut, unless its latents are known already."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

from PIL import Image

from dreambooth.engine.data import cropping, decoding, prefetch
from dreambooth.engine.data.pictures import Example

if TYPE_CHECKING:
    from torch import Tensor

    from dreambooth.engine.data.latent_store import Store

_CUT_BYTES = 2**24  # of a file's variants that are cut at once and lie in memory until the VAE has them


@dataclass(frozen=True)
class Prepared:
    """An example's mean and standard deviation (4, h, w) where they are known, or else its picture."""

    known: tuple[Tensor, Tensor] | None
    picture: Image.Image | None


def prepared(examples: list[Example], store: Store | None, workers: int) -> Iterator[Prepared]:
    """Each example, in their order, so many files at a time as there are `workers` (prefetch.py). A file whose variants
    follow each other is decoded once, as far as they do not take much memory.

    Raises UserError naming a file that cannot be read.
    """
    for some in prefetch.in_order(partial(_of_file, store), _by_file(examples), bytes_of_file, workers):
        yield from some


def _by_file(examples: list[Example]) -> Iterator[list[Example]]:
    for _, group in groupby(examples, key=lambda example: (example.picture.path, example.cut.bucket)):
        some = list(group)
        size = max(1, _CUT_BYTES // decoding.bytes_of(some[0].cut.bucket.area))
        for start in range(0, len(some), size):
            yield some[start : start + size]


def bytes_of_file(some: list[Example]) -> int:
    """The most that decoding a file and cutting these examples of it holds."""
    width, height = some[0].cut.source
    return decoding.most_bytes(width * height) + len(some) * decoding.bytes_of(some[0].cut.bucket.area)


def _of_file(store: Store | None, some: list[Example]) -> list[Prepared]:
    found = [store.read(example) if store else None for example in some]
    if None not in found:
        return [Prepared(known, None) for known in found]
    whole = decoding.decode(some[0].picture.path)
    return [
        Prepared(known, None if known else cropping.apply(whole, example.cut)) for example, known in zip(some, found)
    ]
