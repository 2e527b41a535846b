"""The training loop: one for full fine-tuning and LoRA, with and without class images."""

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
    """What the loop asks of the world around it. `check` raises Diverged for weights that must not be saved; `measure`
    returns whether the run is past its best and is to end."""

    release_cuda_graphs: Callable[[], None]  # set by TracedStep, called by hooks that need the memory

    def requests(self) -> set[str]: ...
    def answered(self, request: str) -> None: ...
    def report(self, **fields: Any) -> None: ...
    def warn(self, said: Problem) -> None: ...
    def cooling(self, seconds: int) -> None: ...
    def report_skipped(self, steps: list[int]) -> None: ...
    def measure(self, check: Callable[[], None]) -> bool: ...
    def preview(self, images: int, check: Callable[[], None]) -> None: ...
    def save_model(self, images: int, *, asked: bool) -> None: ...
    def save_state(self, *, wait: bool) -> bool: ...
    def tend_states(self) -> bool: ...


def train(session: Session, hooks: Hooks) -> Ending:
    """Trains from the session's step to the end of its budget, until it is past its best, or until a request ends it.

    Returns how the run ended. Raises Diverged if its losses or weights are no longer finite.
    """
    metrics = StepMetrics(session, hooks)
    _set_training_mode(session)
    if session.step == 0:
        began = time.monotonic()
        hooks.measure(metrics.check)
        hooks.preview(0, metrics.check)
        metrics.exclude(time.monotonic() - began)  # as no step was taken meanwhile

    with stepping(session) as fused_backward:
        ending = _take_steps(session, hooks, _Steps(session, hooks, metrics, fused_backward))
    if ending:
        return ending
    metrics.check()
    hooks.measure(metrics.check)
    hooks.preview(session.images, metrics.check)
    return "done"


def follow(session: Session, hooks: Hooks, is_told: Callable[[], bool]) -> None:
    """Computes this process's share of every step of a run that another process leads, while `is_told` returns that
    there is another step."""
    metrics = StepMetrics(session, hooks)
    _set_training_mode(session)
    steps = _Steps(session, hooks, metrics, None)  # a fused backward pass is never shared
    while is_told():
        steps.take()
        metrics.discard_flags()


def _set_training_mode(session: Session) -> None:
    session.model.unet.train()
    optimizers.set_mode(session.optimizer, training=True)


def _take_steps(session: Session, hooks: Hooks, steps: _Steps) -> Ending | None:
    """Returns how the run ends if a request ends it."""
    while session.step < session.budget.steps:
        if ending := _serve_requests(session, hooks, steps.metrics):
            return ending
        session.ranks.begin_step()
        steps.take()
        steps.metrics.report_if_due()
        if _do_what_is_due(session, hooks, steps.metrics):
            break
    return None


class _Steps:
    """Takes the steps of a session."""

    def __init__(
        self, session: Session, hooks: Hooks, metrics: StepMetrics, fused_backward: FusedBackward | None
    ) -> None:
        self.session, self.metrics, self.fused_backward = session, metrics, fused_backward
        self.forward_backward = TracedStep(session, hooks, fused_backward)
        self.alpha_bar = make_scheduler("ddim", session.model).alphas_cumprod.to(session.model.device)
        self.text_images = schedules.text_images(session.settings, session.budget)  # for which text is trained

    def take(self) -> None:
        session, budget, metrics = self.session, self.session.budget, self.metrics
        _set_rates(session)

        # Accumulate the gradients of the step's batches.
        for part in session.ranks.share(budget.accumulation):
            position = self._seed(part)
            trains_text = session.images < self.text_images
            batch = loss.make_batch(session, position, self.alpha_bar, trains_text=trains_text)
            metrics.add_losses(self.forward_backward.run(batch))
        if session.ranks.size > 1:
            session.ranks.add_up(session, metrics.step_losses)
            # Stochastic rounding depends on the seed, and must be the same in all processes.
            self._seed(budget.accumulation - 1)

        # Update the weights, unless the step is to be skipped, which only the device knows.
        norms = self.fused_backward.finish() if self.fused_backward else gradient_clipping.clip(session)
        session.change_weights(skip_if=metrics.end_step(norms), is_stepped=self.fused_backward is not None)

    def _seed(self, part: int) -> int:
        """Seeds the random generators by the position at which one of the step's batches starts, which counts images,
        and returns this position."""
        budget = self.session.budget
        position = (self.session.step * budget.accumulation + part) * budget.batch
        torch.manual_seed((self.session.settings.general.seed * 1_000_003 + position) % 2**63)
        return position


def _serve_requests(session: Session, hooks: Hooks, metrics: StepMetrics) -> Ending | None:
    """Serves the requests that have come; returns how the run ends if one of them ends it."""
    for request in sorted(hooks.requests(), key=REQUESTS.index):
        if request in ("save", "pause", "stop"):
            metrics.check()  # before it is answered: a run that goes back to its last state is still asked
        hooks.answered(request)
        if request == "preview":
            hooks.preview(session.images, metrics.check)
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
    for group, parameter_group in zip(session.groups, session.optimizer.param_groups):
        parameter_group["lr"] = group.rate(session.settings) * factor


def _do_what_is_due(session: Session, hooks: Hooks, metrics: StepMetrics) -> bool:
    """Previews, saves, measures and pauses when due. Returns whether the run is past its best and is to end."""
    intervals, budget, step = session.settings.intervals, session.budget, session.step
    if budget.is_due(intervals.save_preview_every, step, intervals.save_preview_every_steps):
        hooks.preview(session.images, metrics.check)
    if budget.is_due(intervals.save_model_every, step, intervals.save_model_every_steps):
        metrics.check()
        hooks.save_model(session.images, asked=False)
    if budget.is_due(intervals.validate_every, step) and hooks.measure(metrics.check):
        return True
    overdue = hooks.tend_states()
    if budget.is_due(intervals.save_state_every, step, intervals.save_state_every_steps) or overdue:
        metrics.check()
        hooks.save_state(wait=False)
    if budget.is_due(intervals.epoch_pause_frequency, step):
        hooks.cooling(intervals.epoch_pause_time)
        metrics.exclude(_pause(intervals.epoch_pause_time, hooks))
    return False


def _pause(seconds: int, hooks: Hooks) -> float:
    """Waits for these seconds, or until a request comes. Returns the seconds that it took."""
    began = time.monotonic()
    while time.monotonic() < began + seconds and not hooks.requests():
        time.sleep(min(COOLING_POLL_SECONDS, seconds))
    return time.monotonic() - began
