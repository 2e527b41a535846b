"""A training session in memory on random latents, with everything that one batch's loss is made of."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from dreambooth.core.buckets import Bucket
from dreambooth.core.run_length import budget
from dreambooth.core.settings import parse
from dreambooth.engine.data.batch_order import BatchOrder, Slot
from dreambooth.engine.data.cache import Encoded
from dreambooth.engine.data.caption_schedule import CaptionSchedule
from dreambooth.engine.drawing.sampling import make_scheduler
from dreambooth.engine.families.model import Model
from dreambooth.engine.training import adapters, loss, optimizers
from dreambooth.engine.training.session import Session
from dreambooth.engine.training.text_embeddings import Texts

BUCKET = Bucket(64, 64)


@dataclass
class Seen:
    """What the UNet was given and what it said."""

    x_t: Tensor
    t: Tensor
    predicted: Tensor


def encoded(count: int, concepts: list[int], seed: int) -> Encoded:
    """Random latents whose standard deviation is 0, so that each draw is the mean."""
    torch.manual_seed(seed)
    mean = torch.randn(count, 4, 8, 8)
    bucket, prompt = torch.zeros(2, count, dtype=torch.long)
    sizes = torch.tensor([[64, 64, 0, 0, 64, 64]] * count)
    return Encoded(
        [mean],
        [torch.zeros_like(mean)],
        bucket,
        torch.arange(count),
        prompt,
        torch.tensor(concepts),
        sizes,
        mean.device,
    )


def session(model: Model, *, batch: int = 3, priors: bool = True, concepts: int = 1, **changes: Any) -> Session:
    """A session over six pictures, with six of the class where asked. The model is copied, so that tests share it."""
    rows = {f"concepts.{n}.instance_prompt": "a star" for n in range(concepts)}
    settings = parse({**rows, "general.method": "full", "batching.train_batch_size": batch, **changes})
    own = replace(model, unet=copy.deepcopy(model.unet), text_encoders=copy.deepcopy(model.text_encoders))
    numbers = [n % concepts for n in range(6)]
    instances, of_class = encoded(6, numbers, 1), encoded(6, numbers, 2)
    slots = [Slot(number, BUCKET) for number in numbers]
    caption_schedule = CaptionSchedule(["a star"] * 6, ["a thing"] * 6, settings.captions, 0)
    instances.prompt.fill_(caption_schedule.captions.index("a star"))
    of_class.prompt.fill_(caption_schedule.captions.index("a thing"))
    trained = adapters.make_trainable(own, settings)
    return Session(
        settings,
        budget(settings, 6),
        own,
        trained,
        Accelerator(cpu=True),
        instances,
        of_class if priors else None,
        BatchOrder(slots, slots if priors else [], 0),
        caption_schedule,
        Texts(own, caption_schedule.texts),
        optimizers.make(trained, settings),
        None,
    )


def alpha_bar(model: Model) -> Tensor:
    return make_scheduler("ddim", model).alphas_cumprod


def losses(chosen: Session, position: int = 0, seed: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """The loss as the loop takes it, its subject's and its class's part."""
    torch.manual_seed(seed)
    trains_text = chosen.settings.tuning.text_encoder_ratio > 0
    batch = loss.make_batch(chosen, position, alpha_bar(chosen.model), trains_text=trains_text)
    return loss.compute_losses(chosen, batch)


def watched(chosen: Session, position: int = 0, seed: int = 7) -> tuple[list[float], Seen]:
    """The loss and its two parts, and what the UNet saw and said on the way."""
    seen: list[Seen] = []
    original = type(chosen.model).denoise

    def denoise(model: Model, x_t: Tensor, t: Tensor, text: Any, sizes: Tensor) -> Tensor:
        predicted = original(model, x_t, t, text, sizes)
        seen.append(Seen(x_t, t, predicted.detach()))
        return predicted

    chosen.model.denoise = denoise.__get__(chosen.model)  # type: ignore[method-assign]
    try:
        with torch.no_grad():
            found = losses(chosen, position, seed)
    finally:
        del chosen.model.denoise  # type: ignore[attr-defined]
    return [part.item() for part in found], seen[0]


def clean(chosen: Session, position: int = 0) -> tuple[Tensor, int]:
    """The latents of the batch, the subject's first, and how many are the subject's."""
    instances, priors = chosen.order.batch(position, chosen.budget.batch)
    x_0 = chosen.instances.mean[0][instances]
    if chosen.priors is not None:
        x_0 = torch.cat([x_0, chosen.priors.mean[0][priors]])
    return x_0, len(instances)
