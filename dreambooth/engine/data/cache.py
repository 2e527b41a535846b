"""What the loop trains on, encoded once and kept on the device: latents and text embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dreambooth.core.buckets import Bucket
from dreambooth.core.errors import UserError
from dreambooth.core.forecast import pictures_at_once
from dreambooth.engine.data import decoding, framing
from dreambooth.engine.data.pictures import Example
from dreambooth.engine.families.model import Model


@dataclass
class Encoded:
    """A set of examples: mean and standard deviation of their latents, a tensor (n, 4, h, w) for each bucket, and where
    among them each example is.

    `size` (N, 6): height and width of the file in pixels, top and left corner of the crop in the resized picture,
    height and width of the crop.
    """

    mean: list[Tensor]
    std: list[Tensor]
    bucket: Tensor  # (N,) index into the buckets, on the CPU
    row: Tensor  # (N,) index within the bucket, on the CPU
    prompt: Tensor  # (N,) index into the prompts, on the CPU
    concept: Tensor  # (N,) on the CPU
    size: Tensor  # on the CPU

    def __len__(self) -> int:
        return len(self.prompt)

    def sample(self, index: Tensor) -> Tensor:
        """A fresh draw of the latents of the examples at `index` (B,), all of one bucket -> (B, 4, h, w)."""
        number = int(self.bucket[index[0]])
        mean, std = self.mean[number], self.std[number]
        rows = self.row[index].to(mean.device)
        return mean[rows] + std[rows] * torch.randn_like(mean[rows])


@torch.no_grad()
def encode(model: Model, examples: list[Example], prompts: list[str], on_batch: Callable[[int], None]) -> Encoded:
    """Encodes examples; their prompts must be among `prompts`. Of the pictures, one batch is in memory at a time.

    Raises UserError naming a picture whose latents are not finite.
    """
    buckets = list(dict.fromkeys(example.cut.bucket for example in examples))
    means: list[list[Tensor]] = [[] for _ in buckets]
    stds: list[list[Tensor]] = [[] for _ in buckets]
    done, rows = 0, [0] * len(examples)
    for chunk in _chunks(examples, buckets):
        some, number = [examples[n] for n in chunk], buckets.index(examples[chunk[0]].cut.bucket)
        mean, std = model.encode_pictures(torch.stack([to_tensor(picture) for picture in _variants(some)]))
        for example, finite in zip(some, torch.isfinite(mean + std).flatten(1).all(1).tolist()):
            if not finite:
                raise UserError(
                    f"{example.picture.path}: the VAE cannot encode this picture (its latents are not finite)."
                )
        for place, n in enumerate(chunk):
            rows[n] = sum(map(len, means[number])) + place
        means[number].append(mean)
        stds[number].append(std)
        done += len(chunk)
        on_batch(done)
    index = {prompt: number for number, prompt in enumerate(prompts)}
    return Encoded(
        [torch.cat(some).to(model.device) for some in means],
        [torch.cat(some).to(model.device) for some in stds],
        torch.tensor([buckets.index(e.cut.bucket) for e in examples]),
        torch.tensor(rows),
        torch.tensor([index[e.picture.prompt] for e in examples]),
        torch.tensor([e.picture.concept for e in examples]),
        torch.tensor([e.cut.conditions for e in examples]),
    )


def to_tensor(picture: Image.Image) -> Tensor:
    """An RGB picture -> (3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1


def _chunks(examples: list[Example], buckets: list[Bucket]) -> Iterator[list[int]]:
    """The numbers of the examples in batches of one bucket each."""
    numbers = sorted(range(len(examples)), key=lambda n: buckets.index(examples[n].cut.bucket))
    for _, some in groupby(numbers, key=lambda n: examples[n].cut.bucket):
        alike = list(some)
        size = pictures_at_once(examples[alike[0]].cut.bucket)
        for start in range(0, len(alike), size):
            yield alike[start : start + size]


def _variants(examples: list[Example]) -> Iterator[Image.Image]:
    """The pictures of examples; a file with several variants in a row is decoded once."""
    for path, some in groupby(examples, key=lambda example: example.picture.path):
        whole = decoding.decode(path)
        for example in some:
            yield framing.apply(whole, example.cut)
