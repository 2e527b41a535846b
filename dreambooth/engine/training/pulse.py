"""What a run says of itself. Numbers are added up on the device and read only when they are told; reading them is the
only time that the device is waited for."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dreambooth.core.errors import UserError
from dreambooth.engine.training.session import Session

if TYPE_CHECKING:
    from dreambooth.engine.training.loop import Hooks

REPORT_SECONDS = 0.5
_LOSSES = ("loss", "subject_loss", "prior_loss")


class Pulse:
    """Means of the losses and of the gradients' norms since the last report."""

    def __init__(self, session: Session) -> None:
        self.session = session
        device = session.model.device
        self.losses = torch.zeros(len(_LOSSES), device=device)
        self.norms = torch.zeros(len(session.trained.parts), device=device)
        self.steps, self.first_step = 0, session.step
        self.reported = self.started = time.monotonic()

    def add_losses(self, losses: tuple[Tensor, ...]) -> None:
        """The losses of one batch."""
        self.losses += torch.stack(losses).detach() / self.session.budget.accumulation

    def add_norms(self, norms: Tensor) -> None:
        """The gradients' norms of one step, which ends the step."""
        self.norms += norms
        self.steps += 1

    def rested(self, seconds: float) -> None:
        """Leaves a rest out of the pace."""
        self.started += seconds

    def check(self) -> None:
        """Waits for the device. Raises UserError if losses or gradients are not finite, before anything is saved."""
        self._read()

    def report_if_due(self, hooks: Hooks) -> None:
        """Tells the means every half second and after the last step."""
        session, now = self.session, time.monotonic()
        if now - self.reported <= REPORT_SECONDS and session.step < session.budget.steps:
            return
        losses, norms = self._read()
        pace = max(1e-6, now - self.started) / (session.step - self.first_step)  # seconds a step; clocks may be coarse
        rates = [group["lr"] for group in session.optimizer.param_groups]
        hooks.report(
            step=session.step,
            steps=session.budget.steps,
            images=session.images,
            **{name: round(loss, 5) for name, loss in zip(_LOSSES, losses)},
            rate=rates[0],
            rates=dict(zip(session.trained.parts, rates)),
            gradient_norms={part: round(norm, 5) for part, norm in zip(session.trained.parts, norms)},
            steps_per_second=round(1 / pace, 3),
            seconds_left=round(pace * (session.budget.steps - session.step), 1),
            memory_bytes=_memory(session.model.device),
        )
        self.losses.zero_()
        self.norms.zero_()
        self.steps, self.reported = 0, now

    def _read(self) -> tuple[list[float], list[float]]:
        """The mean losses and norms. With a scaler (fp16) single gradients may overflow: it leaves those steps out."""
        values: list[float] = (torch.cat([self.losses, self.norms]) / max(1, self.steps)).tolist()
        losses, norms = values[: len(_LOSSES)], values[len(_LOSSES) :]
        counted = losses if self.session.accelerator.scaler else values
        if not all(map(math.isfinite, counted)):
            raise UserError(
                f"The loss is not a number at step {self.session.step}, so these weights are spoilt and were not "
                "saved. Lower the learning rate, or set tuning.mixed_precision to no."
            )
        return losses, norms


def _memory(device: torch.device) -> int:
    """The most memory of the device that was in use at once; 0 where it is not counted."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
