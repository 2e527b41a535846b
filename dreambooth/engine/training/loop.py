"""The training loop: one for full fine-tuning and LoRA, with and without class pictures."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from dreambooth.core.budget import Budget
from dreambooth.core.errors import UserError
from dreambooth.core.settings import Settings, learning_rates
from dreambooth.engine.data.cache import Encoded
from dreambooth.engine.data.order import Order
from dreambooth.engine.families.model import Model
from dreambooth.engine.sampling import make_scheduler
from dreambooth.engine.training import objective, schedules
from dreambooth.engine.training.adapters import Trained
from dreambooth.engine.training.ema import Ema
from dreambooth.engine.training.text import Texts

REPORT_SECONDS = 0.5

Ending = Literal["done", "paused", "stopped", "discarded"]


class Hooks(Protocol):
    """What the loop asks of the world around it."""

    def requests(self) -> set[str]: ...
    def answered(self, request: str) -> None: ...
    def report(self, **fields: Any) -> None: ...
    def preview(self, images: int) -> None: ...
    def save_model(self, images: int) -> None: ...
    def save_state(self, step: int, weights: dict[str, Tensor], rest: dict[str, Any]) -> None: ...


@dataclass
class Session:
    """Everything that a run needs in memory."""

    settings: Settings
    budget: Budget
    model: Model
    trained: Trained
    accelerator: Accelerator
    instances: Encoded
    priors: Encoded | None
    order: Order
    texts: Texts
    optimizer: Any
    ema: Ema | None
    step: int = 0

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything resumable: the weights, and the rest in the form that torch saves."""
        weights = dict(self.trained.named())
        if self.ema:
            weights.update({f"ema.{name}": average for name, average in self.ema.average.items()})
        scaler = self.accelerator.scaler
        rest = {
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "ema_updates": self.ema.updates if self.ema else 0,
            "scaler": scaler.state_dict() if scaler else None,
        }
        return weights, rest

    @torch.no_grad()
    def restore(self, weights: dict[str, Tensor], rest: dict[str, Any]) -> None:
        """Puts a saved state back. Raises UserError if it belongs to other settings."""
        own, _ = self.state()
        if own.keys() != weights.keys() or any(own[name].shape != weights[name].shape for name in own):
            raise UserError("The saved state does not fit these settings (method, rank or text encoder differ).")
        for name, tensor in own.items():
            tensor.copy_(weights[name])
        self.optimizer.load_state_dict(rest["optimizer"])
        self.step = rest["step"]
        if self.ema:
            self.ema.updates = rest["ema_updates"]
        if self.accelerator.scaler and rest["scaler"]:
            self.accelerator.scaler.load_state_dict(rest["scaler"])


def train(session: Session, hooks: Hooks) -> Ending:
    """Trains from the session's step to the end of its budget, or until somebody asks to stop."""
    settings, budget, model, optimizer = session.settings, session.budget, session.model, session.optimizer
    alpha_bar = make_scheduler("ddim", model).alphas_cumprod.to(model.device)
    text_images = settings.tuning.text_encoder_ratio * budget.images
    parameters = list(session.trained.named().values())
    sums = torch.zeros(3, device=model.device)  # loss, subject's part, class's part since the last report
    steps_in_sums, reported, started, first_step = 0, time.monotonic(), time.monotonic(), session.step
    model.unet.train()
    if session.step == 0:
        hooks.preview(0)

    while session.step < budget.steps:
        # Do what somebody asked for.
        for request in sorted(hooks.requests()):
            hooks.answered(request)
            if request == "preview":
                hooks.preview(budget.images_seen(session.step))
            elif request == "save":
                hooks.save_model(budget.images_seen(session.step))
            elif request == "pause":
                hooks.save_state(session.step, *session.state())
                return "paused"
            else:
                return "stopped" if request == "stop" else "discarded"

        # Set the learning rates.
        seen = budget.images_seen(session.step)
        factor = schedules.rate_factor(settings.learning.scheduler, seen / budget.images, settings.learning.warmup)
        for part, group in zip(session.trained.parts, optimizer.param_groups):
            group["lr"] = learning_rates(settings)[part != "unet"] * factor

        # Add up the gradients of the step's batches.
        for part in range(budget.accumulation):
            position = (session.step * budget.accumulation + part) * budget.batch
            torch.manual_seed((settings.general.seed * 1_000_003 + position) % 2**63)
            losses = _batch_losses(session, position, alpha_bar, text_learns=seen < text_images)
            session.accelerator.backward(losses[0] / budget.accumulation)
            sums += torch.stack(losses).detach() / budget.accumulation

        # Change the weights.
        if settings.tuning.max_grad_norm:
            session.accelerator.clip_grad_norm_(parameters, settings.tuning.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        session.step += 1
        steps_in_sums += 1
        if session.ema:
            session.ema.update(session.trained.named())

        # Report; reading the loss is the only time the device is waited for.
        now = time.monotonic()
        if now - reported > REPORT_SECONDS or session.step == budget.steps:
            loss, subject, prior = _read_losses(sums / steps_in_sums, session.step)
            pace = (now - started) / (session.step - first_step)
            hooks.report(
                step=session.step,
                steps=budget.steps,
                images=budget.images_seen(session.step),
                loss=round(loss, 5),
                subject_loss=round(subject, 5),
                prior_loss=round(prior, 5),
                rate=optimizer.param_groups[0]["lr"],
                steps_per_second=round(1 / pace, 3),
                seconds_left=round(pace * (budget.steps - session.step), 1),
                memory_bytes=_memory(model.device),
            )
            sums.zero_()
            steps_in_sums, reported = 0, now

        # Preview and save on the way.
        if budget.is_due(settings.intervals.save_preview_every, session.step):
            hooks.preview(budget.images_seen(session.step))
        if budget.is_due(settings.intervals.save_model_every, session.step):
            _read_losses(sums, session.step)
            hooks.save_model(budget.images_seen(session.step))
        if budget.is_due(settings.intervals.save_state_every, session.step):
            _read_losses(sums, session.step)
            hooks.save_state(session.step, *session.state())

    hooks.preview(budget.images)
    return "done"


def _batch_losses(
    session: Session, position: int, alpha_bar: Tensor, *, text_learns: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of one batch, with its subject's and its class's part."""
    instances, priors = session.order.batch(position, session.budget.batch)
    own = session.instances
    x_0, prompts, sizes = own.sample(instances), own.prompt[instances], own.size[instances]
    if session.priors is not None and len(priors):
        x_0 = torch.cat([x_0, session.priors.sample(priors)])
        prompts = torch.cat([prompts, session.priors.prompt[priors]])
        sizes = torch.cat([sizes, session.priors.size[priors]])
    eps = torch.randn_like(x_0)
    t = torch.randint(len(alpha_bar), (len(x_0),), device=x_0.device)
    x_t = objective.add_noise(x_0, eps, alpha_bar[t])
    with session.accelerator.autocast():
        text = session.texts.embeddings(prompts, learning=text_learns)
        predicted = session.model.denoise(x_t, t, text, sizes)
    each = objective.squared_error(predicted, objective.target(session.model.prediction_type, x_0, eps, alpha_bar[t]))
    return objective.dreambooth_loss(each, len(instances), session.settings.tuning.prior_loss_weight)


def _read_losses(sums: Tensor, step: int) -> list[float]:
    """Waits for the device and reads the sums. Raises UserError if they are not finite, before anything is saved."""
    values: list[float] = sums.tolist()
    if not all(map(math.isfinite, values)):
        raise UserError(
            f"The loss is not a number at step {step}, so these weights are spoilt and were not saved. "
            "Lower the learning rate, or set tuning.mixed_precision to no."
        )
    return values


def _memory(device: torch.device) -> int:
    """The most memory of the device that was in use at once; 0 where it is not counted."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
