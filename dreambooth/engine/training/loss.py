"""The loss of one batch: its pictures, noise and words put together, and the UNet's prediction judged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dreambooth.engine.families.model import Text
from dreambooth.engine.training import noise, objective, precision

if TYPE_CHECKING:
    from dreambooth.engine.training.session import Session


def batch_losses(
    session: Session, position: int, alpha_bar: Tensor, *, text_learns: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of the batch that starts at `position`, which counts images, with its subject's and its class's part."""
    settings, model = session.settings, session.model
    instances, priors = session.order.batch(position, session.budget.batch)
    own = session.instances
    x_0, sizes, mask = own.sample(instances), own.size[instances], own.masks(instances)
    texts = session.readings.of_yours(own.prompt[instances], position)
    if session.priors is not None and len(priors):
        x_0 = torch.cat([x_0, session.priors.sample(priors)])
        texts = torch.cat([texts, session.readings.of_class(session.priors.prompt[priors])])
        sizes = torch.cat([sizes, session.priors.size[priors]])
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones((len(priors), *mask.shape[1:]))])

    # Noise them.
    choice = settings.objective
    eps = torch.randn_like(x_0)
    t = noise.timesteps(len(x_0), choice, x_0.device)
    eps = noise.shaped(eps, choice)
    alpha_bar_t = alpha_bar[t]
    x_t = objective.add_noise(x_0, noise.perturbed(eps, choice.input_perturbation), alpha_bar_t)

    # Predict.
    with session.accelerator.autocast():
        text = session.texts.embeddings(texts, learning=text_learns)
    predicted = _predict(session, x_t, t, text, sizes)

    # Judge each picture, and weigh it before the subject's and the class's means are taken.
    wanted = objective.target(model.prediction_type, x_0, eps, alpha_bar_t)
    error = objective.error(predicted, wanted, choice, alpha_bar_t, t)
    each = objective.picture_means(error, mask, choice.unmasked_weight)
    if choice.weighting != "none":
        each = each * objective.timestep_weight(model.prediction_type, choice, alpha_bar_t)
    if any(concept.loss_weight != 1 for concept in settings.concepts):
        each[: len(instances)] *= _concept_weights(session, instances)
    prior_weight = objective.prior_weight(settings, position / session.budget.pictures)
    return objective.dreambooth_loss(each, len(instances), prior_weight)


def _predict(session: Session, x_t: Tensor, t: Tensor, text: Text, sizes: Tensor) -> Tensor:
    dtype = precision.plain_dtype(session.accelerator, session.settings, session.trained.kind)
    if dtype is not None:
        return session.model.denoise(x_t.to(dtype), t, text.to(dtype), sizes)
    with session.accelerator.autocast():
        return session.model.denoise(x_t, t, text, sizes)


def _concept_weights(session: Session, instances: Tensor) -> Tensor:
    """How much each picture of yours counts by its concept, (B,)."""
    weights = torch.tensor([concept.loss_weight for concept in session.settings.concepts])
    return weights[session.instances.concept[instances]].to(session.model.device, non_blocking=True)
