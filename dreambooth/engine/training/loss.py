"""The loss of one batch: its pictures, noise and words put together, and the UNet's prediction judged.

What a picture of the class is to teach is the noise that it was given, or, where the class is kept by prediction, what
the model predicts without its adapters.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dreambooth.engine import hardware
from dreambooth.engine.families import inpainting_inputs
from dreambooth.engine.families.text_encoding import TextEmbedding
from dreambooth.engine.layers.disabled_adapters import disabled
from dreambooth.engine.training import noise, objective, precision

if TYPE_CHECKING:
    from dreambooth.engine.training.session import Session


@dataclass
class Batch:
    """What a batch's loss is worked out from. Whatever differs from batch to batch is a tensor.

    B pictures: the subject's, and the class's, of which the last may keep to the base model's prediction. Of the text,
    either what the UNet reads or, where its encoders learn, `tokens`.
    """

    subjects: int  # how many are the subject's
    x_t: Tensor  # (B, 4, h, w)
    t: Tensor  # (B,)
    wanted: Tensor  # (B, 4, h, w), of the UNet
    alpha_bar_t: Tensor  # (B,)
    sizes: Tensor  # (B, 6), as families.model.whole_picture has them
    prior_weight: Tensor  # ()
    mask: Tensor | None = None  # (B, 1, h, w)
    around: Tensor | None = None  # (B, 5, h, w), what an inpainting model sees, as families.around has it
    concept_weights: Tensor | None = None  # (subjects,)
    hidden: Tensor | None = None
    pooled: Tensor | None = None
    text_mask: Tensor | None = None
    tokens: Tensor | None = None  # (text encoders, B, pieces x 77)
    emptied: Tensor | None = None  # rows that nothing is read in
    token_weights: Tensor | None = None  # (B, pieces x 77), how much each token counts
    rest_hidden: Tensor | None = None  # what a text encoder that rests has read, where the other learns
    rest_pooled: Tensor | None = None
    base_hidden: Tensor | None = None  # what the base model reads for its predictions (P, ...), and so on
    base_pooled: Tensor | None = None
    base_mask: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def batch_losses(
    session: Session, position: int, alpha_bar: Tensor, *, text_learns: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of the batch that starts at `position`, which counts images, with its subject's and its class's part."""
    return losses(session, make_batch(session, position, alpha_bar, text_learns=text_learns))


def make_batch(session: Session, position: int, alpha_bar: Tensor, *, text_learns: bool) -> Batch:
    """The batch that starts at `position`, noised."""
    settings, model = session.settings, session.model
    instances, priors = session.order.batch(position, session.budget.batch)
    priors, predicted = _predicted_last(session, priors)
    own = session.instances
    x_0, sizes, mask = own.sample(instances), own.size[instances], own.masks(instances)
    seen = own.around(instances)
    texts = session.readings.of_yours(own.prompt[instances], position)
    if session.priors is not None and len(priors):
        x_0 = torch.cat([x_0, session.priors.sample(priors)])
        texts = torch.cat([texts, session.readings.of_class(session.priors.prompt[priors])])
        sizes = torch.cat([sizes, session.priors.size[priors]])
        if seen is not None and (of_class := session.priors.around(priors)) is not None:
            seen = torch.cat([seen, of_class])
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones((len(priors), *mask.shape[1:]))])

    # Noise them.
    choice = settings.objective
    eps = torch.randn_like(x_0)
    t = noise.timesteps(len(x_0), choice, x_0.device)
    eps = noise.shaped(eps, choice)
    alpha_bar_t = alpha_bar[t]
    x_t = objective.add_noise(x_0, noise.perturbed(eps, choice.input_perturbation), alpha_bar_t)

    prior_weight = objective.prior_weight(settings, position / session.budget.pictures)
    batch = Batch(
        subjects=len(instances),
        x_t=x_t,
        t=t,
        wanted=objective.target(model.prediction_type, x_0, eps, alpha_bar_t),
        alpha_bar_t=alpha_bar_t,
        sizes=hardware.brought(sizes, x_0.device),
        prior_weight=torch.full((), prior_weight, device=x_0.device),
        mask=mask,
        around=seen,
    )
    if any(concept.loss_weight != 1 for concept in settings.concepts):
        batch.concept_weights = _concept_weights(session, instances)
    _read(session, batch, texts, predicted, text_learns=text_learns)
    return batch


def _read(session: Session, batch: Batch, texts: Tensor, predicted: int, *, text_learns: bool) -> None:
    """Gives a batch what is read, by the texts' numbers; and of the last `predicted` what the base model reads."""
    if text_learns:
        batch.tokens, batch.emptied, batch.token_weights = session.texts.look_up(texts)
        with session.accelerator.autocast():
            rest = session.texts.at_rest(texts)
        if rest:
            batch.rest_hidden, batch.rest_pooled = rest.hidden, rest.pooled
    else:
        with session.accelerator.autocast():
            text = session.texts.embeddings(texts)
        batch.hidden, batch.pooled, batch.text_mask = text.hidden, text.pooled, text.mask
    if predicted:
        with session.accelerator.autocast():
            base = session.texts.base_embeddings(texts[-predicted:])
        batch.base_hidden, batch.base_pooled, batch.base_mask = base.hidden, base.pooled, base.mask


def _predicted_last(session: Session, priors: Tensor) -> tuple[Tensor, int]:
    """A batch's pictures of the class, last those that keep to the base model's prediction, and how many these are."""
    by_concept = [concept.class_mode == "prediction" for concept in session.settings.concepts]
    if session.priors is None or not any(by_concept):
        return priors, 0
    is_predicted = torch.tensor(by_concept)[session.priors.concept[priors]]
    return torch.cat([priors[~is_predicted], priors[is_predicted]]), int(is_predicted.sum())


def losses(session: Session, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of a batch, with its subject's and its class's part."""
    settings, prediction_type = session.settings, session.model.prediction_type
    wanted, taken = batch.wanted, inpainting_inputs.joined(batch.x_t, batch.around)
    if batch.base_hidden is not None:
        base = _base_prediction(
            session, taken, batch, TextEmbedding(batch.base_hidden, batch.base_pooled, batch.base_mask)
        )
        wanted = torch.cat([wanted[: -len(base)], base.to(wanted.dtype)])
    predicted = denoised(session, taken, batch.t, _text(session, batch), batch.sizes)

    # Judge each picture, and weigh it before the subject's and the class's means are taken.
    choice, alpha_bar_t = settings.objective, batch.alpha_bar_t
    error = objective.error(predicted, wanted, choice, alpha_bar_t, batch.t)
    each = objective.picture_means(error, batch.mask, choice.unmasked_weight)
    if choice.weighting != "none":
        each = each * objective.timestep_weight(prediction_type, choice, alpha_bar_t)
    if batch.concept_weights is not None:
        each[: batch.subjects] *= batch.concept_weights
    return objective.dreambooth_loss(each, batch.subjects, batch.prior_weight)


@torch.no_grad()
def _base_prediction(session: Session, taken: Tensor, batch: Batch, text: TextEmbedding) -> Tensor:
    """What the UNet predicts without its adapters for the last rows of `taken`, which read `text`, (P, 4, h, w)."""
    x_t, t, sizes = (some[-len(text.hidden) :] for some in (taken, batch.t, batch.sizes))
    with disabled(session.adapters):
        return denoised(session, x_t, t, text, sizes)


def denoised(session: Session, x_t: Tensor, t: Tensor, text: TextEmbedding, sizes: Tensor) -> Tensor:
    """What the UNet predicts, (B, 4, h, w), in the precision that the run computes in; of an inpainting model `x_t` is
    what `around.joined` gives."""
    dtype = precision.plain_dtype(session.accelerator, session.settings)
    if dtype is None:
        with session.accelerator.autocast():
            return session.model.denoise(x_t, t, text, sizes)
    return session.model.denoise(x_t.to(dtype), t, text.to(dtype), sizes)


def _text(session: Session, batch: Batch) -> TextEmbedding:
    if batch.tokens is not None:
        rest = None if batch.rest_hidden is None else TextEmbedding(batch.rest_hidden, batch.rest_pooled)
        with session.accelerator.autocast():
            return session.texts.read(batch.tokens, batch.emptied, batch.token_weights, rest)
    assert batch.hidden is not None
    return TextEmbedding(batch.hidden, batch.pooled, batch.text_mask)


def _concept_weights(session: Session, instances: Tensor) -> Tensor:
    """How much each picture of yours counts by its concept, (B,)."""
    weights = torch.tensor([concept.loss_weight for concept in session.settings.concepts])
    return hardware.brought(weights[session.instances.concept[instances]], session.model.device)
