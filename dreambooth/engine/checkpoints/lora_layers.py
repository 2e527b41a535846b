"""What each kind of layer in a LoRA file does to a weight, by the formulas that the WebUIs' readers use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from dreambooth.engine.checkpoints.lora_header import LOHA, LOKR, OFT
from dreambooth.engine.layers import dora, oft

_LEAST = 1e-8


class Change:
    """What all kinds have in common: a change of a weight, and DoRA on top of it where there is a `magnitude`."""

    kind: ClassVar[str]
    alpha: float
    magnitude: Tensor | None

    def difference(self) -> Tensor:
        """What is added to the weight, before DoRA, float32; its shape is the weight's but for flattened sides."""
        raise NotImplementedError

    def change(self, weight: Tensor) -> Tensor:
        """The change of this weight, float32, in its shape. Raises ValueError if it does not fit."""
        whole = self.difference()
        if whole.numel() != weight.numel() or whole.shape[0] != weight.shape[0]:
            raise ValueError(tuple(whole.shape))
        whole = whole.reshape(weight.shape)
        if self.magnitude is None:
            return whole
        if self.magnitude.numel() != weight.shape[1]:
            raise ValueError(tuple(self.magnitude.shape))
        plain = weight.float()
        scale = self.magnitude.float().flatten() / dora.column_norms(plain, whole)
        return (plain + whole) * scale.view(1, -1, *[1] * (weight.dim() - 2)) - plain


@dataclass(frozen=True)
class Layer(Change):
    """A LoRA: alpha / rank * up @ down, with `mid` between them in some convolutions."""

    down: Tensor  # (rank, in, ...)
    up: Tensor  # (out, rank, ...)
    alpha: float
    mid: Tensor | None = None
    magnitude: Tensor | None = None

    kind = "lora"

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def difference(self) -> Tensor:
        down, up = self.down.float(), self.up.float().flatten(1)
        if self.mid is not None:  # Tucker decomposition: down and up are 1x1, mid is the convolution
            down = torch.einsum("rskl,si->rikl", self.mid.float(), down.flatten(1))
        return up @ down.flatten(1) * (self.alpha / self.rank)


@dataclass(frozen=True)
class Hadamard(Change):
    """A LoHa (FedPara, arXiv 2108.06098): alpha / rank * (w1_a @ w1_b) o (w2_a @ w2_b), by LyCORIS' names."""

    tensors: Mapping[str, Tensor]
    alpha: float
    magnitude: Tensor | None = None

    kind = "loha"

    @property
    def rank(self) -> int:
        return self.tensors["hada_w1_b"].shape[0]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def difference(self) -> Tensor:
        of = self.tensors
        first = _product(of["hada_w1_a"], of["hada_w1_b"], of.get("hada_t1"))
        second = _product(of["hada_w2_a"], of["hada_w2_b"], of.get("hada_t2"))
        return first * second * self.scale


@dataclass(frozen=True)
class Kronecker(Change):
    """A LoKr (arXiv 2309.14859, section 3.2): alpha / rank * w1 (x) w2, each whole or a product, by LyCORIS' names.

    Where both are whole there is no rank, and readers do not look at alpha.
    """

    tensors: Mapping[str, Tensor]
    alpha: float
    magnitude: Tensor | None = None

    kind = "lokr"

    @property
    def rank(self) -> int:
        split = self.tensors.get("lokr_w2_b", self.tensors.get("lokr_w1_b"))
        return 0 if split is None else split.shape[0]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank if self.rank else 1.0

    def difference(self) -> Tensor:
        of, sides = self.tensors, list[Tensor]()
        for side in ("lokr_w1", "lokr_w2"):
            whole, core = of.get(side), of.get("lokr_t2") if side == "lokr_w2" else None
            sides.append(_product(of[f"{side}_a"], of[f"{side}_b"], core) if whole is None else whole.float())
        first, second = sides
        return torch.kron(first.view(*first.shape, *[1] * (second.dim() - 2)), second) * self.scale


@dataclass(frozen=True)
class Orthogonal(Change):
    """An OFT: the weight's outputs turned in blocks, no further than `alpha` (of the outputs) where it is not 0."""

    tensors: Mapping[str, Tensor]
    alpha: float
    magnitude: Tensor | None = None

    kind = "oft"
    scale = 1.0

    @property
    def rank(self) -> int:
        return self.tensors["oft_blocks"].shape[-1]

    def change(self, weight: Tensor) -> Tensor:
        blocks = self.tensors["oft_blocks"].float()
        if blocks.shape[0] * blocks.shape[1] != weight.shape[0]:
            raise ValueError(tuple(blocks.shape))
        if self.alpha:
            length = (blocks - blocks.transpose(-1, -2)).norm()
            blocks = blocks * (length.clamp(max=self.alpha * weight.shape[0]) / length.clamp(min=_LEAST))
        return oft.rotate(weight.float(), oft.rotations(blocks)) - weight.float()


AnyLayer = Layer | Hadamard | Kronecker | Orthogonal


def layer_of(kind: str, found: Mapping[str, Tensor], alpha: float) -> AnyLayer:
    """The layer that these tensors make, by their names in LyCORIS' files."""
    magnitude = found.get("dora_scale")
    if kind == "lora":
        return Layer(found["down"], found["up"], alpha, found.get("mid"), magnitude)
    if kind == "loha":
        return Hadamard(_only(LOHA, found), alpha, magnitude)
    if kind == "lokr":
        return Kronecker(_only(LOKR, found), alpha, magnitude)
    return Orthogonal(_only(OFT, found), alpha)


def fits(layer: AnyLayer, weight: Tensor) -> bool:
    """Whether its sizes go with this weight's and with each other, found without values and whatever device."""
    try:
        replace(layer, **{one.name: _sized(getattr(layer, one.name)) for one in fields(layer)}).change(_sized(weight))
    except (ValueError, RuntimeError):
        return False
    return True


def rank(found: Mapping[str, Iterable[int]]) -> int:
    """The rank of a layer from its tensors' shapes, which is alpha where a file does not say it; 1 without a rank."""
    shapes = {name: tuple(shape) for name, shape in found.items()}
    sides = [shapes[name] for name in ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b") if name in shapes]
    return sides[0][0] if sides else 1


def _only(names: Iterable[str], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: found[name] for name in names if name in found}


def _sized(value: Any) -> Any:
    """Tensors of the same sizes that hold nothing, in place of those that are given."""
    if isinstance(value, Tensor):
        return torch.empty_like(value, device="meta")
    return {name: _sized(one) for name, one in value.items()} if isinstance(value, Mapping) else value


def _product(a: Tensor, b: Tensor, core: Tensor | None) -> Tensor:
    """a @ b, or with the core of a convolution (r, r, kh, kw) its product with a (r, out) and b (r, in)."""
    if core is None:
        return a.float().flatten(1) @ b.float().flatten(1)
    return torch.einsum("ijkl,ip,jr->prkl", core.float(), a.float(), b.float())
