"""What the loop trains on, encoded once and kept on the device: latents and text embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dreambooth.core.errors import UserError
from dreambooth.engine.data import pictures
from dreambooth.engine.families.model import Model

_BATCH = 8


@dataclass
class Encoded:
    """A set of pictures: mean and standard deviation of each one's latents (N, 4, h, w), and its prompt's number.

    `size` (N, 6): height and width of the file in pixels, top and left corner of the crop in the resized picture,
    height and width of the crop.
    """

    mean: Tensor
    std: Tensor
    prompt: Tensor  # (N,) index into the prompts, on the CPU
    concept: Tensor  # (N,) on the CPU
    size: Tensor

    def __len__(self) -> int:
        return len(self.mean)

    def sample(self, index: Tensor) -> Tensor:
        """A fresh draw of the latents of the pictures at `index` (B,) -> (B, 4, h, w)."""
        index = index.to(self.mean.device)
        return self.mean[index] + self.std[index] * torch.randn_like(self.mean[index])


@torch.no_grad()
def encode(
    model: Model, some: list[pictures.Picture], prompts: list[str], size: int, on_batch: Callable[[int], None]
) -> Encoded:
    """Encodes pictures; their prompts must be among `prompts`.

    Raises UserError naming a picture whose latents are not finite.
    """
    means, stds = [], []
    for start in range(0, len(some), _BATCH):
        chunk = some[start : start + _BATCH]
        mean, std = model.encode_pictures(torch.stack([to_tensor(pictures.load(p.path, size)) for p in chunk]))
        for picture, finite in zip(chunk, torch.isfinite(mean + std).flatten(1).all(1).tolist()):
            if not finite:
                raise UserError(f"{picture.path}: the VAE cannot encode this picture (its latents are not finite).")
        means.append(mean)
        stds.append(std)
        on_batch(start + len(chunk))
    index = {prompt: number for number, prompt in enumerate(prompts)}
    return Encoded(
        torch.cat(means).to(model.device),
        torch.cat(stds).to(model.device),
        torch.tensor([index[p.prompt] for p in some]),
        torch.tensor([p.concept for p in some]),
        torch.tensor([pictures.framing(p.path, size) for p in some]),
    )


def to_tensor(picture: Image.Image) -> Tensor:
    """An RGB picture -> (3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1
