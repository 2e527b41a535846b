"""What drawing pictures holds, on models of full size and without a card: a part of the planner's table.

Counted are the UNet's predictions, two for each picture with guidance, in each way that the engine has it compute (see
`core.counted.prediction`). They hold so much for each latent pixel, next to nothing beside that, and the same with a
LoRA; what decoding holds is counted beside them (see footprint.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from dreambooth.engine.bench import random_model
from dreambooth.engine.bench.footprint import SIDES, Point, fill, inputs
from dreambooth.engine.bench.live_tensors import Live, norms_as_on_a_card
from dreambooth.engine.training import attention

HOW = {"half": "bf16", "half/autocast": "bf16", "mixed": "mixed", "no": "no"}  # and the precision of the weights
_FEW, _MANY = 2, 8  # predictions at once


def predictions(family: str) -> dict[str, list[float]]:
    """What they hold, (a, b): a + b for each latent pixel of each of them."""
    found, side = {}, SIDES[family]
    for how in HOW:
        few, many = (count(family, how, Point(batch, side)) for batch in (_FEW, _MANY))
        each = (many - few) / (_MANY - _FEW) / side**2
        found[how] = [float(round(few - _FEW * side**2 * each)), round(each, 2)]
    return found


def count(family: str, how: str, point: Point, *, fake: bool = True) -> int:
    """The most bytes that predictions hold at once beside the weights. Not `fake`, they are really made."""
    unet: Any = random_model.modules(family)["unet"].requires_grad_(False)
    attention.use(unet, "sdpa")
    with FakeTensorMode(allow_non_fake_inputs=True) if fake else torch.random.fork_rng(), torch.no_grad():
        fill(unet.eval(), HOW[how], trains_all=True)
        dtype = unet.dtype
        given = {
            name: value.to(dtype) if isinstance(value, Tensor) and name != "timestep" else value
            for name, value in inputs(unet, family, point).items()
        }
        undo, is_mixed = norms_as_on_a_card(), how in ("half/autocast", "mixed")
        try:
            held = [*unet.parameters(), *unet.buffers()]
            with Live((), held) as live, torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
                unet(**given).sample.float()
        finally:
            undo()
    return live.peak
