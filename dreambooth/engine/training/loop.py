"""The training loop: one for full fine-tuning and LoRA, with and without class pictures."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

from dreambooth.core import schedules
from dreambooth.core.errors import Problem
from dreambooth.core.job_folder import REQUESTS, Ending
from dreambooth.engine.drawing.sampling import make_scheduler
from dreambooth.engine.training import gradient_clipping, loss, optimizers
from dreambooth.engine.training.fused_backward import FusedBackward, stepping
from dreambooth.engine.training.session import Session
from dreambooth.engine.training.step_metrics import StepMetrics
from dreambooth.engine.training.traced_step import TracedStep

COOLING_POLL_SECONDS = 0.2


class Hooks(Protocol):
    """What the loop asks of the world around it. `check` raises for weights that must not be saved. `measure` says
    whether the run is past its best, and to end."""

    def requests(self) -> set[str]: ...
    def answered(self, request: str) -> None: ...
    def report(self, **fields: Any) -> None: ...
    def warn(self, said: Problem) -> None: ...
    def cooling(self, seconds: int) -> None: ...
    def left_out(self, steps: list[int]) -> None: ...
    def measure(self, check: Callable[[], None]) -> bool: ...
    def preview(self, images: int, check: Callable[[], None]) -> None: ...
    def save_model(self, images: int, *, asked: bool) -> None: ...
    def save_state(self, *, wait: bool) -> bool: ...
    def tend_states(self) -> bool: ...


def train(session: Session, hooks: Hooks) -> Ending:
    """Trains from the session's step to the end of its budget, until it is past its best, or somebody asks to stop."""
    pulse = StepMetrics(session, hooks)
    _begin(session)
    if session.step == 0:
        hooks.measure(pulse.check)
        hooks.preview(0, pulse.check)

    with stepping(session) as in_backward:
        ending = _take_steps(session, hooks, _Steps(session, hooks, pulse, in_backward))
    if ending:
        return ending
    pulse.check()
    hooks.measure(pulse.check)
    hooks.preview(session.images, pulse.check)
    return "done"


def follow(session: Session, hooks: Hooks, is_told: Callable[[], bool]) -> None:
    """Takes this process's part in every step of another's run, as long as that one says that there is one."""
    pulse = StepMetrics(session, hooks)
    _begin(session)
    steps = _Steps(session, hooks, pulse, None)  # a step in the backward pass is never shared
    while is_told():
        steps.take()
        pulse.forget()


def _begin(session: Session) -> None:
    session.model.unet.train()
    optimizers.set_mode(session.optimizer, training=True)


def _take_steps(session: Session, hooks: Hooks, steps: _Steps) -> Ending | None:
    """Returns how the run ends if somebody asks for its end."""
    while session.step < session.budget.steps:
        if ending := _serve_requests(session, hooks, steps.pulse):
            return ending
        session.ranks.begin_step()
        steps.take()
        steps.pulse.report_if_due()
        if _do_what_is_due(session, hooks, steps.pulse):
            break
    return None


class _Steps:
    """The steps of a session, and what they have in common."""

    def __init__(self, session: Session, hooks: Hooks, pulse: StepMetrics, in_backward: FusedBackward | None) -> None:
        self.session, self.pulse, self.in_backward = session, pulse, in_backward
        self.passes = TracedStep(session, hooks, in_backward)
        self.alpha_bar = make_scheduler("ddim", session.model).alphas_cumprod.to(session.model.device)
        self.reading_learns = schedules.text_images(session.settings, session.budget)

    def take(self) -> None:
        session, budget, pulse = self.session, self.session.budget, self.pulse
        _set_rates(session)

        # Add up the gradients of the step's batches.
        for part in session.ranks.share(budget.accumulation):
            position = self._seed(part)
            text_learns = session.images < self.reading_learns
            batch = loss.make_batch(session, position, self.alpha_bar, text_learns=text_learns)
            pulse.add_losses(self.passes.run(batch))
        if session.ranks.size > 1:
            session.ranks.add_up(session, pulse.batches)
            self._seed(budget.accumulation - 1)  # rounding goes by it, and must be the same everywhere

        # Change the weights, unless the step is not sound; the device knows.
        norms = self.in_backward.finish() if self.in_backward else gradient_clipping.clip(session)
        session.change_weights(left_out_if=pulse.end_step(norms), changed=self.in_backward is not None)

    def _seed(self, part: int) -> int:
        """Has random numbers follow from where one of the step's batches begins, and returns that; it counts images."""
        budget = self.session.budget
        position = (self.session.step * budget.accumulation + part) * budget.batch
        torch.manual_seed((self.session.settings.general.seed * 1_000_003 + position) % 2**63)
        return position


def _serve_requests(session: Session, hooks: Hooks, pulse: StepMetrics) -> Ending | None:
    """Does what somebody asked for; returns how the run ends if that was asked."""
    for request in sorted(hooks.requests(), key=REQUESTS.index):
        if request in ("save", "pause", "stop"):
            pulse.check()  # before it is answered: a run that goes back to its last state is still asked
        hooks.answered(request)
        if request == "preview":
            hooks.preview(session.images, pulse.check)
        elif request == "save":
            hooks.save_model(session.images, asked=True)
        elif request == "pause":
            if hooks.save_state(wait=True):
                return "paused"  # otherwise it has said why, and nothing is lost as long as the run goes on
        else:
            return "stopped" if request == "stop" else "discarded"
    return None


def _set_rates(session: Session) -> None:
    """Gives each parameter group the learning rate of this point of the run."""
    factor = schedules.rate_factor(session.settings.learning, session.images / session.budget.images)
    for group, made in zip(session.groups, session.optimizer.param_groups):
        made["lr"] = group.rate(session.settings) * factor


def _do_what_is_due(session: Session, hooks: Hooks, pulse: StepMetrics) -> bool:
    """Previews, saves, measures and rests on the way. Returns whether the run is past its best, and to end."""
    intervals, budget, step = session.settings.intervals, session.budget, session.step
    if budget.is_due(intervals.save_preview_every, step, intervals.save_preview_every_steps):
        hooks.preview(session.images, pulse.check)
    if budget.is_due(intervals.save_model_every, step, intervals.save_model_every_steps):
        pulse.check()
        hooks.save_model(session.images, asked=False)
    if budget.is_due(intervals.validate_every, step) and hooks.measure(pulse.check):
        return True
    overdue = hooks.tend_states()
    if budget.is_due(intervals.save_state_every, step, intervals.save_state_every_steps) or overdue:
        pulse.check()
        hooks.save_state(wait=False)
    if budget.is_due(intervals.epoch_pause_frequency, step):
        hooks.cooling(intervals.epoch_pause_time)
        pulse.rested(_rest(intervals.epoch_pause_time, hooks))
    return False


def _rest(seconds: int, hooks: Hooks) -> float:
    """Waits, until somebody asks for something at the longest. Returns the seconds that it took."""
    began = time.monotonic()
    while time.monotonic() < began + seconds and not hooks.requests():
        time.sleep(min(COOLING_POLL_SECONDS, seconds))
    return time.monotonic() - began
