"""The figures of a run's progress. They are accumulated on the device and read only for a report; reading them is the
only time that the device is waited for, but for a gradient scaler's own look at each step (fp16, with optimizers that
are not fused)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dreambooth.core.errors import UserError
from dreambooth.engine import hardware
from dreambooth.engine.training import nonfinite_steps, state
from dreambooth.engine.training.session import Session

if TYPE_CHECKING:
    from dreambooth.engine.training.loop import Hooks

REPORT_SECONDS = 0.5
_LOSSES = ("loss", "subject_loss", "prior_loss")


class Diverged(UserError):
    """Training no longer leads anywhere; nothing of it has been saved."""


class DivergenceGuard:
    """Reports skipped steps, and ends a run that has diverged."""

    def __init__(self, session: Session, hooks: Hooks) -> None:
        self.session, self.hooks = session, hooks
        self.unread: list[Tensor] = []  # whether each step since the last reading was skipped, a boolean on the device
        self.consecutive = 0  # skipped steps

    def check_steps(self, skipped: list[bool]) -> None:
        """Takes the values of `unread`, the last of which is the session's latest step.

        Raises Diverged for too many skipped steps in a row, or a gradient scale in fp16 that has become useless.
        """
        self.unread.clear()
        session, most = self.session, self.session.settings.tuning.nonfinite_steps
        first = session.step - len(skipped) + 1
        steps = [first + n for n, is_skipped in enumerate(skipped) if is_skipped]
        for is_skipped in skipped:
            self.consecutive = self.consecutive + 1 if is_skipped else 0
            if self.consecutive >= most:
                break
        if steps:
            self.hooks.report_skipped(steps)
        if self.consecutive >= most:
            raise Diverged(f"The loss was not a number in {most} steps in a row, the last of them {steps[-1]}.")
        if (scaler := session.accelerator.scaler) and scaler.get_scale() < 1:
            raise Diverged(f"The gradients no longer fit into half precision at step {session.step}.")

    def check_weights(self) -> None:
        """Raises Diverged if a weight, an EMA weight or an optimizer state is not finite. Waits for the device."""
        if not nonfinite_steps.all_finite(list(state.tensors(self.session.state()))):
            raise Diverged(f"The weights are no numbers any more at step {self.session.step}.")


class StepMetrics:
    """Means of the losses and of the gradients' norms since the last report, over the steps that were not skipped."""

    def __init__(self, session: Session, hooks: Hooks) -> None:
        self.session, self.hooks = session, hooks
        self.guard = DivergenceGuard(session, hooks)
        device = session.model.device
        self.step_losses = torch.zeros(len(_LOSSES), device=device)  # of the current step, over its batches
        self.losses = torch.zeros(len(_LOSSES), device=device)
        self.norms = torch.zeros(len(session.trained.parts), device=device)
        self.counted = torch.zeros(1, device=device)  # steps in these sums
        self.means = [0.0] * (len(self.losses) + len(self.norms))  # as they were read last
        self.first_step = session.step
        self.reported = self.started = time.monotonic()

    def add_losses(self, losses: tuple[Tensor, ...]) -> None:
        """Adds the losses of one batch to those of the current step."""
        self.step_losses += torch.stack(losses).detach() / self.session.budget.accumulation

    def end_step(self, norms: Tensor) -> Tensor:
        """Takes the norms of the step's gradients, (parts,). Returns whether the step must be skipped, a boolean on the
        device.

        With a gradient scaler (fp16) gradients may overflow: it skips such steps itself, and they are not counted.
        """
        has_overflown = ~torch.isfinite(norms).all()
        skip = ~torch.isfinite(self.step_losses).all()
        if not self.session.accelerator.scaler:
            skip = skip | has_overflown
        is_sound = ~(skip | has_overflown)
        self.losses += torch.where(is_sound, self.step_losses, 0)
        self.norms += torch.where(is_sound, norms, 0)
        self.counted += is_sound
        self.step_losses.zero_()
        self.guard.unread.append(skip)
        return skip

    def exclude(self, seconds: float) -> None:
        """Leaves these seconds, which just passed, out of the steps' pace."""
        self.started += seconds

    def discard_flags(self) -> None:
        """Forgets which steps were skipped, in a process that leaves reporting to another one."""
        self.guard.unread.clear()

    def check(self) -> None:
        """Raises Diverged if what would be saved now is spoilt. Waits for the device."""
        self._read()
        self.guard.check_weights()

    def report_if_due(self) -> None:
        """Reports the means every half second and after the last step."""
        session, now = self.session, time.monotonic()
        if now - self.reported <= REPORT_SECONDS and session.step < session.budget.steps:
            return
        losses, norms = self._read()
        pace = max(1e-6, now - self.started) / (session.step - self.first_step)  # seconds a step; clocks may be coarse
        groups = zip(session.groups, session.optimizer.param_groups)
        # Of LoRA+ the smaller rate; Prodigy's is a factor of the step size that it estimates, `d`.
        rates = {group.part: own["lr"] * float(own.get("d", 1)) for group, own in groups if group.factor == 1}
        self.hooks.report(
            step=session.step,
            steps=session.budget.steps,
            images=session.images,
            **{name: round(loss, 5) for name, loss in zip(_LOSSES, losses)},
            rate=next(iter(rates.values())),
            rates=rates,
            gradient_norms={part: round(norm, 5) for part, norm in zip(session.trained.parts, norms)},
            steps_per_second=round(1 / pace, 3),
            seconds_left=round(pace * (session.budget.steps - session.step), 1),
            memory_bytes=hardware.most_used_bytes(session.model.device),
        )
        for total in (self.losses, self.norms, self.counted):
            total.zero_()
        self.reported = now

    def _read(self) -> tuple[list[float], list[float]]:
        """The mean losses and norms, all read in one transfer.

        Raises PeerLost if another process's share is missing, and Diverged for too many skipped steps.
        """
        sums = torch.cat([self.losses, self.norms, self.counted])
        values: list[float] = torch.cat([sums, *(flag[None].to(sums) for flag in self.guard.unread)]).tolist()
        self.session.ranks.check()
        counted = int(values[len(sums) - 1])
        if counted:
            self.means = [value / counted for value in values[: len(sums) - 1]]
        self.guard.check_steps([bool(flag) for flag in values[len(sums) :]])
        return self.means[: len(_LOSSES)], self.means[len(_LOSSES) :]
