"""The VAE's inputs: each example's image, cropped to its bucket, unless its latents are in the store."""

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

_MAX_CROP_BYTES = 2**24  # of a file's variants that are cropped at once and held in memory until the VAE encodes them


@dataclass(frozen=True)
class VaeInput:
    """An example's latents, mean and standard deviation (4, h, w) each, where they are stored, or else its image."""

    latents: tuple[Tensor, Tensor] | None
    image: Image.Image | None


def prepare(examples: list[Example], store: Store | None, workers: int) -> Iterator[VaeInput]:
    """The input of each example, in their order, prepared by so many threads (prefetch.py). A file whose variants
    follow each other is decoded once, as far as these do not take much memory.

    Raises UserError naming a file that cannot be read.
    """
    for inputs in prefetch.in_order(partial(_prepare_file, store), _by_file(examples), max_bytes_of_file, workers):
        yield from inputs


def _by_file(examples: list[Example]) -> Iterator[list[Example]]:
    """Consecutive examples of one file and bucket, at most as many as _MAX_CROP_BYTES hold."""
    for _, group in groupby(examples, key=lambda example: (example.picture.path, example.cut.bucket)):
        variants = list(group)
        count = max(1, _MAX_CROP_BYTES // decoding.bytes_of(variants[0].cut.bucket.area))
        for start in range(0, len(variants), count):
            yield variants[start : start + count]


def max_bytes_of_file(variants: list[Example]) -> int:
    """The most memory that decoding a file and cropping these variants of it takes, in bytes."""
    width, height = variants[0].cut.source
    return decoding.most_bytes(width * height) + len(variants) * decoding.bytes_of(variants[0].cut.bucket.area)


def _prepare_file(store: Store | None, variants: list[Example]) -> list[VaeInput]:
    """The inputs of variants of one file, which is decoded only if the latents of any are missing."""
    stored = [store.read(example) if store else None for example in variants]
    if None not in stored:
        return [VaeInput(latents, None) for latents in stored]
    image = decoding.decode(variants[0].picture.path)
    return [
        VaeInput(latents, None if latents else cropping.apply(image, example.cut))
        for example, latents in zip(variants, stored)
    ]
