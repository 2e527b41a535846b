"""How many operations a training step asks of a device: what a card waits for at a batch of one.

Counted on full-size models without a card (shapes are followed and nothing is worked out), beside the same step with
peft's own LoRA layers and autocast, as trainers usually do it. Operations that only look at memory in another way cost
a device nothing and are left out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dreambooth.core.errors import UserError
from dreambooth.core.job_folder import Job
from dreambooth.engine.bench.footprint import SIDES, Point, Step, laid
from dreambooth.engine.bench.live_tensors import norms_as_on_a_card
from dreambooth.engine.layers import lora_layer
from dreambooth.engine.process.listener import asked_to_end

RANK = 16
_LOOKS = {
    *("view", "_unsafe_view", "reshape", "transpose", "permute", "t", "expand", "detach", "alias", "as_strided"),
    *("slice", "select", "split", "split_with_sizes", "chunk", "unbind", "unsqueeze", "squeeze", "lift_fresh"),
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "device"),
}


class Operations(TorchDispatchMode):
    """Within it `count` grows with each operation."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function.overloadpacket.__name__ not in _LOOKS
        return function(*args, **(kwargs or {}))


def run(job: Job) -> dict[str, Any]:
    """A row for each kind of step."""
    rows, kinds = [], [(family, kind) for family in SIDES for kind in ("lora", "loha", "lokr", "full")]
    for done, (family, kind) in enumerate(kinds):
        if asked_to_end(job):
            raise UserError("Stopped as asked; nothing was counted to the end.")
        job.report("stage", name=f"{family} {kind}", done=done, total=len(kinds))
        usual, ours = (count(family, kind, usual=usual) for usual in (True, False))
        rows.append({"family": family, "method": kind, "usual": usual, "ours": ours})
    return {"rows": rows}


def count(family: str, kind: str, *, usual: bool = False) -> tuple[int, int]:
    """The operations of a step's forward and backward pass, in bf16 at a batch of 1. `kind` is full, or a LoRA's."""
    is_lora = kind != "full"
    step = Step(family, kind, "transformer" if is_lora else "all", "mixed" if is_lora else "bf16", checkpointed=False)
    with laid(step, Point(1, SIDES[family], RANK if is_lora else 0)) as (unet, forward):
        if usual:
            for layer in lora_layer.adapter_layers([unet]):
                layer.__class__ = type(layer).__bases__[-1]  # peft's own
        undo, there, back = norms_as_on_a_card(), Operations(), Operations()
        try:
            with there, torch.autocast("cpu", torch.bfloat16, enabled=usual):
                cast = lora_layer.cast_at_once(lora_layer.adapter_layers([unet]), torch.bfloat16)
                with cast:
                    loss = forward()
            with back:
                loss.backward()
        finally:
            undo()
    return there.count, back.count
