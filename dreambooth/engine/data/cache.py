"""Cached latents: mean and standard deviation of each picture's latents, encoded once before training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dreambooth.core.buckets import Bucket
from dreambooth.core.errors import UserError
from dreambooth.core.memory.footprint import LATENTS_ON_DEVICE, pictures_at_once
from dreambooth.core.models.families import LATENT_FACTOR
from dreambooth.engine import hardware
from dreambooth.engine.data import cropping, masks, prefetch, vae_inputs
from dreambooth.engine.data.latent_store import Store
from dreambooth.engine.data.pictures import Example
from dreambooth.engine.families.model import LATENT_CHANNELS, Model

if TYPE_CHECKING:
    from dreambooth.engine.data.inpainting_latents import InpaintingLatents

MOST_ON_DEVICE = LATENTS_ON_DEVICE


@dataclass
class Encoded:
    """The cached latents of N examples, in one tensor for each bucket, and what else a batch takes of them."""

    mean: list[Tensor]  # (n, 4, h, w) for each bucket
    std: list[Tensor]  # the same shapes
    bucket: Tensor  # (N,) index into the buckets, on the CPU
    row: Tensor  # (N,) index within the bucket, on the CPU
    prompt: Tensor  # (N,) index into the prompts, on the CPU
    concept: Tensor  # (N,) on the CPU
    size: Tensor  # (N, 6) on the CPU, SDXL's size conditions, see cropping.Crop.conditions
    device: torch.device  # where samples are wanted
    mask: list[Tensor] | None = None  # (n, 1, h, w) from 0 to 1 for each bucket, where pictures are masked
    surroundings: InpaintingLatents | None = None  # the inputs of an inpainting model
    buffers: hardware.PinnedBuffers = field(default_factory=hardware.PinnedBuffers)

    def __len__(self) -> int:
        return len(self.prompt)

    def sample(self, index: Tensor) -> Tensor:
        """A fresh draw of the latents of the examples at `index` (B,), all of one bucket -> (B, 4, h, w)."""
        number = int(self.bucket[index[0]])
        mean, std = (
            self.buffers.rows_brought(table[number], self.row[index], self.device) for table in (self.mean, self.std)
        )
        return mean + std * torch.randn_like(mean)

    def average(self, index: Tensor) -> Tensor:
        """The mean latents of the examples at `index` (B,), all of one bucket, without noise -> (B, 4, h, w)."""
        mean = self.mean[int(self.bucket[index[0]])]
        return self.buffers.rows_brought(mean, self.row[index], self.device)

    def masks(self, index: Tensor) -> Tensor | None:
        """The masks of the examples at `index` (B,), all of one bucket -> (B, 1, h, w); None where none are used."""
        if self.mask is None:
            return None
        mask = self.mask[int(self.bucket[index[0]])]
        return self.buffers.rows_brought(mask, self.row[index], self.device)

    def around(self, index: Tensor) -> Tensor | None:
        """A fresh draw of an inpainting model's inputs, mask and masked latents, for the examples at `index` (B,), all
        of one bucket -> (B, 5, h, w)."""
        if self.surroundings is None:
            return None
        return self.surroundings.sample(int(self.bucket[index[0]]), self.row[index], self.device)

    def nothing_around(self, index: Tensor) -> Tensor | None:
        """An inpainting model's inputs where the whole picture is masked, (1, 5, h, w)."""
        return None if self.surroundings is None else self.surroundings.nothing[int(self.bucket[index[0]])]


@torch.no_grad()
def encode(
    model: Model,
    examples: list[Example],
    prompts: list[str],
    on_batch: Callable[[int], None],
    store: Store | None = None,
) -> Encoded:
    """Encodes examples, or reads their latents from the store; their prompts must be among `prompts`.

    Only one batch of pictures is in memory at a time, and on a GPU the next ones, which are decoded ahead. Raises
    UserError naming a picture that cannot be read, or whose latents are not finite.
    """
    encoded = _empty(model, examples, prompts)
    with model.present("vae"), store.writing_beside() if store else nullcontext():
        _encode_all(model, examples, encoded, on_batch, store)
    return encoded


def _encode_all(
    model: Model, examples: list[Example], encoded: Encoded, on_batch: Callable[[int], None], store: Store | None
) -> None:
    chunks, done = list(_chunks(examples)), 0
    workers = (
        0 if model.vae.device.type == "cpu" else prefetch.WORKERS
    )  # a CPU that encodes has no time to decode ahead
    in_turn = [examples[n] for chunk in chunks for n in chunk]
    with closing(vae_inputs.prepare(in_turn, store, workers)) as inputs:
        for chunk in chunks:
            missing = dict[int, Image.Image]()
            for n, vae_input in zip(chunk, inputs):
                if vae_input.latents:
                    _place(encoded, n, *vae_input.latents)
                else:
                    missing[n] = vae_input.image
            for n, mean, std in _encoded(model, examples, missing):
                if store:
                    store.write(examples[n], mean, std)
                _place(encoded, n, mean, std)
            done += len(chunk)
            on_batch(done)


def cut_masks(examples: list[Example]) -> list[Tensor | None]:
    """The mask of each example as it is cut, (1, h, w) from 0 to 1; None for a picture without one.

    Raises UserError naming a mask that will not do.
    """
    by_file = [list(variants) for _, variants in groupby(examples, key=lambda example: example.picture.path)]
    return [mask for cut in prefetch.in_order(_cut_mask, by_file, vae_inputs.max_bytes_of_file) for mask in cut]


def _cut_mask(variants: list[Example]) -> list[Tensor | None]:
    """The cut masks of the variants of one picture."""
    path = variants[0].picture.path
    whole, cut = masks.decode(path), []
    for example in variants:
        mask = None if whole is None else to_mask(cropping.shape(whole, example.cut))
        if whole is not None and mask is not None and not mask.any():
            raise UserError(_leaves_nothing(path, whole))
        cut.append(mask)
    return cut


def _leaves_nothing(path: Path, mask: Image.Image) -> str:
    if not to_mask(mask).any():
        return f"{path}: its mask leaves nothing of the picture; whiten what is to be learned."
    return (
        f"{path}: the crop cuts off all that its mask leaves; choose another one by hand, or let pictures.buckets "
        "and pictures.crop find a better one."
    )


def add_masks(encoded: Encoded, cut: list[Tensor | None]) -> None:
    """Keeps the masks of the examples beside their latents, all 1 for a picture without one."""
    encoded.mask = [torch.ones_like(mean[:, :1]) for mean in encoded.mean]
    for n, mask in enumerate(cut):
        if mask is not None:
            encoded.mask[int(encoded.bucket[n])][int(encoded.row[n])] = mask


def to_mask(mask: Image.Image) -> Tensor:
    """A mask in grey -> the weight of each latent in the loss, (1, h, w) from 0 to 1."""
    small = mask.resize((mask.width // LATENT_FACTOR, mask.height // LATENT_FACTOR), Image.Resampling.BOX)
    return torch.from_numpy(np.array(small)).float()[None] / 255


def to_tensor(picture: Image.Image) -> Tensor:
    """An RGB picture -> (3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1


def _empty(model: Model, examples: list[Example], prompts: list[str]) -> Encoded:
    """Tensors for the latents of all examples: on the device, unless they are too large for it."""
    used = [example.cut.bucket for example in examples]
    counts, rows, seen = Counter(used), [], Counter[Bucket]()
    for bucket in used:
        rows.append(seen[bucket])
        seen[bucket] += 1
    shapes = [(n, LATENT_CHANNELS, b.height // LATENT_FACTOR, b.width // LATENT_FACTOR) for b, n in counts.items()]
    total = sum(2 * 4 * int(np.prod(shape)) for shape in shapes)
    place = model.device if total <= MOST_ON_DEVICE else torch.device("cpu")
    number, index = list(counts), {prompt: n for n, prompt in enumerate(prompts)}
    return Encoded(
        [torch.empty(shape, device=place) for shape in shapes],
        [torch.empty(shape, device=place) for shape in shapes],
        torch.tensor([number.index(bucket) for bucket in used]),
        torch.tensor(rows),
        torch.tensor([index[example.picture.prompt] for example in examples]),
        torch.tensor([example.picture.concept for example in examples]),
        torch.tensor([example.cut.conditions for example in examples]),
        model.device,
    )


def _place(encoded: Encoded, n: int, mean: Tensor, std: Tensor) -> None:
    number, row = int(encoded.bucket[n]), int(encoded.row[n])
    encoded.mean[number][row] = mean
    encoded.std[number][row] = std


def _encoded(
    model: Model, examples: list[Example], missing: dict[int, Image.Image]
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The number, mean and standard deviation of examples of one bucket, given their pictures. They are encoded
    together; on a CPU one by one, which takes as long and less memory."""
    if not missing:
        return
    pixels = torch.stack([to_tensor(picture) for picture in missing.values()])
    at_once = 1 if model.vae.device.type == "cpu" else len(pixels)
    parts = [model.encode_pictures(part) for part in pixels.split(at_once)]
    means, stds = (torch.cat(side) for side in zip(*parts))
    finite = torch.isfinite(means + stds).flatten(1).all(1).tolist()
    for n, mean, std, is_finite in zip(missing, means, stds, finite):
        if not is_finite:
            path = examples[n].picture.path
            raise UserError(f"{path}: the VAE cannot encode this picture (its latents are not finite).")
        yield n, mean, std


def _chunks(examples: list[Example]) -> Iterator[list[int]]:
    """The numbers of the examples in batches of one bucket each."""
    buckets = list(dict.fromkeys(example.cut.bucket for example in examples))
    numbers = sorted(range(len(examples)), key=lambda n: buckets.index(examples[n].cut.bucket))
    for bucket, of_bucket in groupby(numbers, key=lambda n: examples[n].cut.bucket):
        together, size = list(of_bucket), pictures_at_once(bucket.area)
        for start in range(0, len(together), size):
            yield together[start : start + size]
