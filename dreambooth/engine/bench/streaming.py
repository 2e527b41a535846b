"""Whole steps of a UNet of full size with random weights, their optimizer's change in the backward pass among them.

`count` tells what such a step holds whose weights lie in the computer's memory, counted without a card: the second
step, when the optimizer has its states. What lies in the computer's memory between two uses, and what always lies on
the card, is left out; what is fetched counts.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dreambooth.core.settings import Settings
from dreambooth.engine.bench import random_model
from dreambooth.engine.bench.footprint import PRECISIONS, Point, fill, inputs
from dreambooth.engine.bench.live_tensors import Live, norms_as_on_a_card
from dreambooth.engine.families import unet_weights
from dreambooth.engine.families.weight_prefetch import SameStream
from dreambooth.engine.training import adapters, checkpointing, optimizers
from dreambooth.engine.training.fused_backward import FusedBackward
from dreambooth.engine.training.precision import is_plain

CPU = torch.device("cpu")


def count(settings: Settings, family: str, point: Point) -> int:
    """The most bytes that are held at once beside what always lies on the card."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        unet, optimizer, step = build(settings, family, point)
        undo = norms_as_on_a_card()
        try:
            step()
            with Live((), _lasting(unet, optimizer)) as live:
                step()
        finally:
            undo()
    return live.peak


def build(settings: Settings, family: str, point: Point) -> tuple[nn.Module, Any, Callable[[], Tensor]]:
    """A UNet, its optimizer, and what takes a step with both and returns its loss."""
    precision = "bf16" if settings.memory.bf16_weights else settings.tuning.mixed_precision
    precision = "mixed" if precision == "auto" else precision
    unet: Any = random_model.modules(family)["unet"].requires_grad_(False)
    fill(unet.eval(), precision, trains_all=True)
    unet_weights.store_weights(
        unet, settings.memory.unet_weights, CPU, by=SameStream()
    )  # as a card holds two blocks at once
    model: Any = SimpleNamespace(unet=unet, text_encoders={}, device=CPU)
    trained = adapters.make_trainable(model, settings)
    if settings.batching.gradient_checkpointing:
        checkpointing.enable(unet, settings.memory.checkpointed_share)
    optimizer = optimizers.make(trained, settings)
    groups = optimizers.groups(trained, settings)
    session: Any = SimpleNamespace(settings=settings, model=model, trained=trained, groups=groups, optimizer=optimizer)
    stepping = FusedBackward(session)
    given, target = inputs(unet, family, point), torch.randn(point.batch, 4, point.side, point.side)
    held, is_mixed = PRECISIONS[precision]
    if is_mixed and is_plain(torch.bfloat16, held):
        given |= {name: given[name].bfloat16() for name in ("sample", "encoder_hidden_states")}
        is_mixed = False

    def step() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
            loss: Tensor = (unet(**given).sample.float() - target).square().mean()
        stepping.start((loss,))
        loss.backward()
        stepping.finish()
        return loss.detach()

    return unet, optimizer, step


def _lasting(unet: nn.Module, optimizer: Any) -> list[Tensor]:
    weights = [weight for _, weight in unet_weights.named_weights(unet)]
    states = [value for kept in optimizer.state.values() for value in kept.values() if isinstance(value, Tensor)]
    return [*weights, *unet.parameters(), *unet.buffers(), *states]
