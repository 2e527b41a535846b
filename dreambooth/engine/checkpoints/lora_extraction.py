"""What was learned as a LoRA of any rank: extracted from a model trained as a whole, or a LoRA made smaller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dreambooth.engine.checkpoints import lora_header
from dreambooth.engine.checkpoints.source import Source
from dreambooth.engine.checkpoints.weight_deltas import Changes

_SPARE = 16  # directions that are looked for besides those that are kept
_ROUNDS = 8  # of looking: of what the exact decomposition would hold 0.1 % is missed, 1 % in a random matrix


@dataclass(frozen=True)
class ExtractedLora:
    """A LoRA's tensors by their names in a file, and the share of the square of what was learned that they hold."""

    tensors: dict[str, Tensor]
    held: float


def extract(
    model: Source,
    changes: Changes,
    rank: int,
    *,
    fits: Callable[[str], bool],
    dtype: torch.dtype,
    report: Callable[[int, int], None],
) -> ExtractedLora:
    """A LoRA of the `rank` largest directions of each layer's change. `fits` says which weights are of layers that
    LoRAs have; what changed besides, as in norms, is left out and counts as not held. `report` is called with the
    number of changes that are done, and of all."""
    tensors, whole, held = dict[str, Tensor](), 0.0, 0.0
    keys = lora_header.keys(model.tensors, model.about.family)
    for done, (name, change) in enumerate(changes.items()):
        report(done, len(changes))
        changed = change(model.read(name)).float()
        size = _square(changed)
        whole += size
        if size and fits(name):
            down, up = (side.to(dtype) for side in factors(changed, rank))
            held += size - _square(changed.flatten(1) - up.flatten(1).float() @ down.flatten(1).float())
            key = keys[name]
            alpha = torch.tensor(float(len(down)), dtype=dtype)  # readers divide it by the rank
            tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": alpha}
    return ExtractedLora(tensors, held / whole if whole else 0.0)


def factors(changed: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(out, in, ...) -> down (rank, in, ...) and up (out, rank, 1...), whose product comes closest to it.

    The rank is at most the shorter side. Each takes the root of every direction's size, so that half precision has
    room for both. In large matrices they are looked for as Halko, Martinsson and Tropp do (arXiv 0909.4061, 4.4).
    """
    matrix = changed.flatten(1)
    shorter = min(matrix.shape)
    rank = min(rank, shorter)
    if rank + _SPARE >= shorter:
        left, sizes, right = torch.linalg.svd(matrix, full_matrices=False)
        right = right.T
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            left, sizes, right = torch.svd_lowrank(matrix, q=rank + _SPARE, niter=_ROUNDS)
    roots = sizes[:rank].sqrt()
    up, down = left[:, :rank] * roots, (right[:, :rank] * roots).T
    return down.reshape(rank, *changed.shape[1:]), up.reshape(*up.shape, *[1] * (changed.dim() - 2))


def _square(values: Tensor) -> float:
    return values.square().sum(dtype=torch.float64).item()
