"""The inputs of an inpainting model in training: a mask, and the latents of the picture with the mask cut out of it.

Those of a few masks of each picture are cached as its own latents are. A quarter of the time the whole picture is
masked, so that the model can still paint whole pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
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
    """The cached inputs of a set of examples, in one tensor for each bucket."""

    masked: list[Tensor] | None  # (n, masks, 5, h, w); None where every picture is masked as a whole
    nothing: list[Tensor]  # (1, 5, h, w), where the whole picture is masked
    buffers: hardware.PinnedBuffers = field(default_factory=hardware.PinnedBuffers)

    def sample(self, bucket: int, rows: Tensor, device: torch.device) -> Tensor:
        """The inputs of the examples of these rows (B,), each with one of its masks or masked as a whole -> (B, 5, h,
        w)."""
        nothing = self.nothing[bucket]
        if self.masked is None:
            return nothing.repeat(len(rows), 1, 1, 1)
        masked = self.masked[bucket]
        chosen = torch.randint(masked.shape[1], (len(rows),))  # on the CPU, so that it waits for no device
        whole = hardware.brought(torch.rand(len(rows)) < HIDES_ALL, device)
        inputs = self.buffers.rows_brought(masked.flatten(0, 1), rows * masked.shape[1] + chosen, device)
        return torch.where(whole.view(-1, 1, 1, 1), nothing, inputs)


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
    """Adds the inputs of an inpainting model, with `many` masks of each example, or reads them from the store.

    Raises UserError naming a mask that cannot be used, or a picture whose latents are not finite.
    """
    sides = [(LATENT_FACTOR * mean.shape[3], LATENT_FACTOR * mean.shape[2]) for mean in encoded.mean]
    whole = (inpainting_inputs.whole_picture_inputs(model, width, height) for width, height in sides)
    nothing = [inputs for inputs in whole if inputs is not None]
    encoded.surroundings = InpaintingLatents(None, nothing)
    if not many:
        return
    shapes = [(len(mean), many, inpainting_inputs.CHANNELS, *mean.shape[2:]) for mean in encoded.mean]
    total = sum(4 * int(np.prod(shape)) for shape in shapes)
    place = model.device if total <= cache.MOST_ON_DEVICE else torch.device("cpu")
    masked = encoded.surroundings.masked = [torch.empty(shape, device=place) for shape in shapes]
    with model.present("vae"), store.writing_beside() if store else nullcontext():
        for done, (n, inputs) in enumerate(_inputs(model, examples, many, seed, store), start=1):
            masked[int(encoded.bucket[n])][int(encoded.row[n])] = inputs
            on_example(done)


def _inputs(
    model: Model, examples: list[Example], many: int, seed: int, store: Store | None
) -> Iterator[tuple[int, Tensor]]:
    """The number of each example and its inputs, (masks, 5, h, w). A file with several variants in a row is decoded
    once, and only where something of it is not in the store."""
    n = 0
    for path, variants in groupby(examples, key=lambda example: example.picture.path):
        own, pixels = masks.decode(path), _Pixels(path)
        for variant, example in enumerate(variants):
            drawn = inpainting_masks.masks(path.name, variant, example.cut, own, many, seed)
            hidden = torch.from_numpy(np.stack(drawn)).float()[:, None]
            latents = _latents(model, example, hidden, pixels, store)
            yield n, torch.cat([inpainting_inputs.latent_masks(hidden).to(latents.device), latents], 1)
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
    """The latents of an example with each of its masks (masks, 1, H, W) cut out of it -> (masks, 4, h, w)."""
    known = [store.read_masked(example, mask.numpy()) if store else None for mask in hidden]
    missing = [n for n, latents in enumerate(known) if latents is None]
    at_once = 1 if model.device.type == "cpu" else pictures_at_once(example.cut.bucket.area)
    for start in range(0, len(missing), at_once):
        batch = missing[start : start + at_once]
        for n, latents in zip(batch, inpainting_inputs.encode_masked(model, pixels.of(example)[None], hidden[batch])):
            if store:
                store.write_masked(example, hidden[n].numpy(), latents)
            known[n] = latents
    stacked = torch.stack([hardware.brought(latents, model.device) for latents in known if latents is not None])
    if not torch.isfinite(stacked).all():
        path = example.picture.path
        raise UserError(f"{path}: the VAE cannot encode this picture (its latents are not finite).")
    return stacked
