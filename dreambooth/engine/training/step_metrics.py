"""What a run says of itself. Numbers are added up on the device and read only when they are told; reading them is the
only time that the device is waited for, but for a scaler's own look at each step (fp16, with optimizers that are not
fused)."""

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


class StepMetrics:
    """Means of the losses and of the gradients' norms since the last report, and the steps that were left out."""

    def __init__(self, session: Session, hooks: Hooks) -> None:
        self.session, self.hooks = session, hooks
        device = session.model.device
        self.batches = torch.zeros(len(_LOSSES), device=device)  # the losses of the step that is under way
        self.losses = torch.zeros(len(_LOSSES), device=device)
        self.norms = torch.zeros(len(session.trained.parts), device=device)
        self.counted = torch.zeros(1, device=device)  # sound steps
        self.bad: list[Tensor] = []  # whether each step since the last reading was left out
        self.bad_in_a_row = 0
        self.means = [0.0] * (len(self.losses) + len(self.norms))  # as they were read last
        self.first_step = session.step
        self.reported = self.started = time.monotonic()

    def add_losses(self, losses: tuple[Tensor, ...]) -> None:
        """The losses of one batch."""
        self.batches += torch.stack(losses).detach() / self.session.budget.accumulation

    def end_step(self, norms: Tensor) -> Tensor:
        """The gradients' norms of one step. Returns whether it must be left out, a truth on the device.

        With a scaler (fp16) single gradients may overflow: it leaves those steps out itself.
        """
        overflown = ~torch.isfinite(norms).all()
        bad = ~torch.isfinite(self.batches).all()
        if not self.session.accelerator.scaler:
            bad = bad | overflown
        sound = ~(bad | overflown)
        self.losses += torch.where(sound, self.batches, 0)
        self.norms += torch.where(sound, norms, 0)
        self.counted += sound
        self.batches.zero_()
        self.bad.append(bad)
        return bad

    def rested(self, seconds: float) -> None:
        """Leaves a rest out of the pace."""
        self.started += seconds

    def forget(self) -> None:
        """Leaves what is known of the steps so far to the process that tells of it."""
        self.bad.clear()

    def check(self) -> None:
        """Waits for the device. Raises Diverged if what would be saved now is spoilt."""
        self._read()
        if not nonfinite_steps.all_finite(list(state.tensors(self.session.state()))):
            raise Diverged(f"The weights are no numbers any more at step {self.session.step}.")

    def report_if_due(self) -> None:
        """Tells the means every half second and after the last step."""
        session, now = self.session, time.monotonic()
        if now - self.reported <= REPORT_SECONDS and session.step < session.budget.steps:
            return
        losses, norms = self._read()
        pace = max(1e-6, now - self.started) / (session.step - self.first_step)  # seconds a step; clocks may be coarse
        made = zip(session.groups, session.optimizer.param_groups)
        # Of LoRA+ the smaller one; Prodigy's own is a factor to the distance that it finds.
        rates = {group.part: held["lr"] * float(held.get("d", 1)) for group, held in made if group.times == 1}
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
        """The mean losses and norms of the sound steps. Raises PeerLost if another process's share is missing, and
        Diverged if too many in a row were left out."""
        sums = torch.cat([self.losses, self.norms, self.counted])
        values: list[float] = torch.cat([sums, *(flag[None].to(sums) for flag in self.bad)]).tolist()
        self.session.ranks.check()
        counted = int(values[len(sums) - 1])
        if counted:
            self.means = [value / counted for value in values[: len(sums) - 1]]
        self._judge([bool(flag) for flag in values[len(sums) :]])
        return self.means[: len(_LOSSES)], self.means[len(_LOSSES) :]

    def _judge(self, bad: list[bool]) -> None:
        """Tells which steps were left out since the last reading, the newest of which is the session's."""
        self.bad.clear()
        session, most = self.session, self.session.settings.tuning.nonfinite_steps
        first = session.step - len(bad) + 1
        left_out = [first + n for n, one in enumerate(bad) if one]
        for one in bad:
            self.bad_in_a_row = self.bad_in_a_row + 1 if one else 0
            if self.bad_in_a_row >= most:
                break
        if left_out:
            self.hooks.left_out(left_out)
        if self.bad_in_a_row >= most:
            raise Diverged(f"The loss was not a number in {most} steps in a row, the last of them {left_out[-1]}.")
        if (scaler := session.accelerator.scaler) and scaler.get_scale() < 1:
            raise Diverged(f"The gradients no longer fit into half precision at step {session.step}.")
