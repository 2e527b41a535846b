"""What a step of full fine-tuning holds whose weights lie in the computer's memory, counted without a card.

The second step is counted, when the optimizer has its states. What lies in the computer's memory between two uses,
and what always lies on the card, is left out; what is fetched counts.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from dreambooth.core.settings import Settings
from dreambooth.engine.bench import random_model
from dreambooth.engine.bench.footprint import PRECISIONS, Point, fill, inputs
from dreambooth.engine.bench.live import Live, norms_as_on_a_card
from dreambooth.engine.families import unet_weights
from dreambooth.engine.training import adapters, optimizers
from dreambooth.engine.training.in_backward import StepInBackward

CPU = torch.device("cpu")


def count(settings: Settings, family: str, point: Point) -> int:
    """The most bytes that are held at once beside what always lies on the card."""
    precision = "bf16" if settings.memory.bf16_weights else settings.tuning.mixed_precision
    unet = random_model.modules(family)["unet"].requires_grad_(False)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fill(unet.eval(), "mixed" if precision == "auto" else precision, trains_all=True)
        unet_weights.lay(unet, settings.memory.unet_weights, CPU)
        model: Any = SimpleNamespace(unet=unet, text_encoders={}, device=CPU)
        trained = adapters.prepare(model, settings)
        unet.enable_gradient_checkpointing()
        optimizer = optimizers.make(trained, settings)
        session: Any = SimpleNamespace(settings=settings, model=model, trained=trained, optimizer=optimizer)
        stepping = StepInBackward(session)
        given, target = inputs(unet, family, point), torch.randn(point.batch, 4, point.side, point.side)

        def step() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=PRECISIONS.get(precision, (None, True))[1]):
                loss = (unet(**given).sample.float() - target).square().mean()
            stepping.begin((loss,))
            loss.backward()
            stepping.finish()

        undo = norms_as_on_a_card()
        try:
            step()
            with Live((), _lasting(unet, optimizer)) as live:
                step()
        finally:
            undo()
    return live.peak


def _lasting(unet: torch.nn.Module, optimizer: Any) -> list[Tensor]:
    weights = [weight for _, weight in unet_weights.named_weights(unet)]
    states = [value for kept in optimizer.state.values() for value in kept.values() if isinstance(value, Tensor)]
    return [*weights, *unet.parameters(), *unet.buffers(), *states]
