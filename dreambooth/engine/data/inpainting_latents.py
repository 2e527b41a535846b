"""What an inpainting model sees of its pictures while it learns: of each the latents of what some masks leave, encoded
once as the pictures themselves are, and of a quarter nothing, so that it goes on painting whole pictures too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dreambooth.core.errors import UserError
from dreambooth.core.memory.footprint import pictures_at_once
from dreambooth.core.models.families import LATENT_FACTOR
from dreambooth.engine import hardware
from dreambooth.engine.data import cache, cropping, decoding, inpainting_masks, masks
from dreambooth.engine.data.cache import Encoded
from dreambooth.engine.data.inpainting_masks import HIDES_ALL
from dreambooth.engine.data.latent_store import Store
from dreambooth.engine.data.pictures import Example
from dreambooth.engine.families import inpainting_inputs
from dreambooth.engine.families.model import Model


@dataclass
class InpaintingLatents:
    """Of a set of examples, a tensor for each bucket: what each of an example's masks leaves, (n, masks, 5, h, w), and
    what is around a whole picture, (1, 5, h, w). Without masks every picture is painted whole."""

    left: list[Tensor] | None
    nothing: list[Tensor]

    def sample(self, bucket: int, rows: Tensor, device: torch.device) -> Tensor:
        """What is seen of the examples of these rows (B,) now, each by one of its masks or as a whole, (B, 5, h, w)."""
        nothing = self.nothing[bucket]
        if self.left is None:
            return nothing.repeat(len(rows), 1, 1, 1)
        left = self.left[bucket]
        chosen = torch.randint(left.shape[1], (len(rows),))  # on the CPU, where no device is waited for
        whole = hardware.brought(torch.rand(len(rows)) < HIDES_ALL, device)
        seen = left[hardware.brought(rows, left.device), hardware.brought(chosen, left.device)]
        return torch.where(whole.view(-1, 1, 1, 1), nothing, hardware.brought(seen, device))


@torch.no_grad()
def add(
    model: Model,
    encoded: Encoded,
    examples: list[Example],
    many: int,
    seed: int,
    on_example: Callable[[int], None],
    store: Store | None = None,
) -> None:
    """Keeps beside the latents of the examples what `many` masks leave of each, or takes it from the store.

    Raises UserError naming a mask that will not do, or a picture whose latents are not finite.
    """
    sides = [(LATENT_FACTOR * mean.shape[3], LATENT_FACTOR * mean.shape[2]) for mean in encoded.mean]
    nothing = [seen for width, height in sides if (seen := inpainting_inputs.nothing(model, width, height)) is not None]
    encoded.surroundings = InpaintingLatents(None, nothing)
    if not many:
        return
    shapes = [(len(mean), many, inpainting_inputs.CHANNELS, *mean.shape[2:]) for mean in encoded.mean]
    total = sum(4 * int(np.prod(shape)) for shape in shapes)
    place = model.device if total <= cache.MOST_ON_DEVICE else torch.device("cpu")
    left = encoded.surroundings.left = [torch.empty(shape, device=place) for shape in shapes]
    with model.present("vae"), store.writing_beside() if store else nullcontext():
        for done, (n, seen) in enumerate(_seen(model, examples, many, seed, store), start=1):
            left[int(encoded.bucket[n])][int(encoded.row[n])] = seen
            on_example(done)


def _seen(
    model: Model, examples: list[Example], many: int, seed: int, store: Store | None
) -> Iterator[tuple[int, Tensor]]:
    """The number of each example and what its masks leave, (masks, 5, h, w). A file with several variants in a row is
    decoded once, and only where something of it is not in the store."""
    n = 0
    for path, some in groupby(examples, key=lambda example: example.picture.path):
        own, pixels = masks.decode(path), _Pixels(path)
        for variant, example in enumerate(some):
            found = inpainting_masks.masks(path.name, variant, example.cut, own, many, seed)
            hidden = torch.from_numpy(np.stack(found)).float()[:, None]
            latents = _latents(model, example, hidden, pixels, store)
            yield n, torch.cat([inpainting_inputs.of_latents(hidden).to(latents.device), latents], 1)
            n += 1


class _Pixels:
    """A picture file, decoded when its pixels are first asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._whole = None

    def of(self, example: Example) -> Tensor:
        self._whole = self._whole or decoding.decode(self.path)
        return cache.to_tensor(cropping.apply(self._whole, example.cut))


def _latents(model: Model, example: Example, hidden: Tensor, pixels: _Pixels, store: Store | None) -> Tensor:
    """The latents of what masks (masks, 1, H, W) leave of an example, (masks, 4, h, w)."""
    known = [store.read_masked(example, mask.numpy()) if store else None for mask in hidden]
    missing = [n for n, latents in enumerate(known) if latents is None]
    at_once = 1 if model.device.type == "cpu" else pictures_at_once(example.cut.bucket.area)
    for start in range(0, len(missing), at_once):
        some = missing[start : start + at_once]
        for n, latents in zip(some, inpainting_inputs.masked(model, pixels.of(example)[None], hidden[some])):
            if store:
                store.write_masked(example, hidden[n].numpy(), latents)
            known[n] = latents
    found = torch.stack([hardware.brought(latents, model.device) for latents in known if latents is not None])
    if not torch.isfinite(found).all():
        path = example.picture.path
        raise UserError(f"{path}: the VAE cannot encode this picture (its latents are not finite).")
    return found
