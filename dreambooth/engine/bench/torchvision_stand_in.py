"""The few transforms of torchvision that diffusers' scripts call, on Pillow, for a Python without that package."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from enum import Enum
from importlib.machinery import ModuleSpec
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


class InterpolationMode(Enum):
    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


class Compose:
    def __init__(self, transforms: list[Callable[[Any], Any]]) -> None:
        self.transforms = transforms

    def __call__(self, picture: Any) -> Any:
        for transform in self.transforms:
            picture = transform(picture)
        return picture


class Resize:
    """The shorter side becomes `size`."""

    def __init__(self, size: int, interpolation: InterpolationMode = InterpolationMode.BILINEAR) -> None:
        self.size, self.filter = size, Image.Resampling[interpolation.name]

    def __call__(self, picture: Image.Image) -> Image.Image:
        factor = self.size / min(picture.size)
        width, height = (max(self.size, round(side * factor)) for side in picture.size)
        return picture.resize((width, height), self.filter)


class CenterCrop:
    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, picture: Image.Image) -> Image.Image:
        left, top = (picture.width - self.size) // 2, (picture.height - self.size) // 2
        return picture.crop((left, top, left + self.size, top + self.size))


class RandomCrop(CenterCrop):
    def __call__(self, picture: Image.Image) -> Image.Image:
        left = int(torch.randint(picture.width - self.size + 1, ()))
        top = int(torch.randint(picture.height - self.size + 1, ()))
        return picture.crop((left, top, left + self.size, top + self.size))


class ToTensor:
    def __call__(self, picture: Image.Image) -> Tensor:
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().float() / 255


class Normalize:
    def __init__(self, mean: list[float], std: list[float]) -> None:
        self.mean, self.std = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)

    def __call__(self, picture: Tensor) -> Tensor:
        return (picture - self.mean) / self.std


def install() -> None:
    """Lets `from torchvision import transforms` find these."""
    transforms = types.ModuleType("torchvision.transforms")
    for kind in (InterpolationMode, Compose, Resize, CenterCrop, RandomCrop, ToTensor, Normalize):
        setattr(transforms, kind.__name__, kind)
    package = types.ModuleType("torchvision")
    package.transforms = transforms  # type: ignore[attr-defined]
    package.__spec__, transforms.__spec__ = ModuleSpec("torchvision", None), ModuleSpec("torchvision.transforms", None)
    sys.modules.update({"torchvision": package, "torchvision.transforms": transforms})
