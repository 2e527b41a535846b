"""The loss of one batch: its images are selected and noised, its texts looked up, and the UNet's prediction compared
with the target.

The target of a class image is that of its noise or, with prior preservation by prediction, what the UNet predicts with
its adapters disabled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

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
class TokenizedTexts:
    """The texts of B images for text encoders that are trained, and thus run in the forward pass."""

    tokens: Tensor  # (text encoders, B, chunks x 77)
    empty_rows: Tensor | None  # the numbers of the rows that have the empty prompt
    token_weights: Tensor | None  # (B, chunks x 77), the emphasis of each token
    frozen: TextEmbedding | None  # from the text encoder that is frozen, where only the other one is trained


@dataclass
class Batch:
    """What the loss of B images is computed from: the subject's first, then the class's. Whatever differs between two
    batches of one shape is a tensor."""

    instances: int  # how many images are the subject's
    x_t: Tensor  # (B, 4, h, w)
    t: Tensor  # (B,)
    target: Tensor  # (B, 4, h, w), of the UNet's prediction
    alpha_bar_t: Tensor  # (B,)
    sizes: Tensor  # (B, 6), as families.model.whole_picture has them
    prior_weight: Tensor  # ()
    text: TextEmbedding | TokenizedTexts
    base_text: TextEmbedding | None  # (P, ...) for the last P images, whose target the base model predicts
    mask: Tensor | None  # (B, 1, h, w)
    inpainting: Tensor | None  # (B, 5, h, w), the further input channels of an inpainting model
    concept_weights: Tensor | None  # (instances,)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by their path, such as `text.hidden`, in the order of the fields."""
        return dict(_tensors(self))

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Batch:
        """A copy that has other tensors, by the paths that `tensors` gives."""
        return _with_tensors(self, tensors)  # type: ignore[no-any-return]


def _tensors(data: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for field in fields(data):
        value, path = getattr(data, field.name), f"{prefix}{field.name}"
        if isinstance(value, Tensor):
            yield path, value
        elif is_dataclass(value):
            yield from _tensors(value, f"{path}.")


def _with_tensors(data: Any, tensors: Mapping[str, Tensor], prefix: str = "") -> Any:
    changes: dict[str, Any] = {}
    for field in fields(data):
        value, path = getattr(data, field.name), f"{prefix}{field.name}"
        if isinstance(value, Tensor):
            changes[field.name] = tensors[path]
        elif is_dataclass(value):
            changes[field.name] = _with_tensors(value, tensors, f"{path}.")
    return replace(data, **changes)


@dataclass
class _Examples:
    """The images of a batch before noise is added, B in all."""

    numbers: Tensor  # (instances,), of the subject's among the run's
    predicted: int  # how many images at the end have the base model's prediction as their target
    x_0: Tensor  # (B, 4, h, w)
    sizes: Tensor  # (B, 6)
    texts: Tensor  # (B,), the numbers of their texts
    mask: Tensor | None
    inpainting: Tensor | None


def make_batch(session: Session, position: int, alpha_bar: Tensor, *, trains_text: bool) -> Batch:
    """The batch that starts at `position`, which counts images, with noise drawn for it.

    `alpha_bar` (T,) is the noise schedule. With `trains_text` it holds tokens in place of text embeddings.
    """
    settings, model = session.settings, session.model
    examples = _select_examples(session, position)
    t, alpha_bar_t, eps, x_t = _add_noise(session, examples.x_0, alpha_bar)
    target = objective.target(model.prediction_type, examples.x_0, eps, alpha_bar_t)
    prior_weight = objective.prior_weight(settings, position / session.budget.pictures)
    weighs_concepts = any(concept.loss_weight != 1 for concept in settings.concepts)
    text, base_text = _look_up_texts(session, examples, trains_text=trains_text)
    return Batch(
        instances=len(examples.numbers),
        x_t=x_t,
        t=t,
        target=target,
        alpha_bar_t=alpha_bar_t,
        sizes=hardware.brought(examples.sizes, x_t.device),
        prior_weight=torch.full((), prior_weight, device=x_t.device),
        text=text,
        base_text=base_text,
        mask=examples.mask,
        inpainting=examples.inpainting,
        concept_weights=_concept_weights(session, examples.numbers) if weighs_concepts else None,
    )


def _select_examples(session: Session, position: int) -> _Examples:
    instances, priors = session.order.batch(position, session.budget.batch)
    priors, predicted = _predicted_last(session, priors)
    own = session.instances
    x_0, sizes, mask = own.sample(instances), own.size[instances], own.masks(instances)
    inpainting = own.around(instances)
    texts = session.caption_schedule.of_instances(own.prompt[instances], position)
    if session.priors is not None and len(priors):
        x_0 = torch.cat([x_0, session.priors.sample(priors)])
        texts = torch.cat([texts, session.caption_schedule.of_class(session.priors.prompt[priors])])
        sizes = torch.cat([sizes, session.priors.size[priors]])
        if inpainting is not None and (of_class := session.priors.around(priors)) is not None:
            inpainting = torch.cat([inpainting, of_class])
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones((len(priors), *mask.shape[1:]))])
    return _Examples(instances, predicted, x_0, sizes, texts, mask, inpainting)


def _predicted_last(session: Session, priors: Tensor) -> tuple[Tensor, int]:
    """A batch's class images, last those whose target the base model predicts, and how many these are."""
    by_concept = [concept.class_mode == "prediction" for concept in session.settings.concepts]
    if session.priors is None or not any(by_concept):
        return priors, 0
    is_predicted = torch.tensor(by_concept)[session.priors.concept[priors]]
    return torch.cat([priors[~is_predicted], priors[is_predicted]]), int(is_predicted.sum())


def _add_noise(session: Session, x_0: Tensor, alpha_bar: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents x_0 (B, 4, h, w) -> t (B,), alpha_bar_t (B,), eps and x_t (B, 4, h, w)."""
    choice = session.settings.objective
    eps = torch.randn_like(x_0)
    t = noise.timesteps(len(x_0), choice, x_0.device)
    eps = noise.shaped(eps, choice)
    alpha_bar_t = alpha_bar[t]
    x_t = objective.add_noise(x_0, noise.perturbed(eps, choice.input_perturbation), alpha_bar_t)
    return t, alpha_bar_t, eps, x_t


def _look_up_texts(
    session: Session, examples: _Examples, *, trains_text: bool
) -> tuple[TextEmbedding | TokenizedTexts, TextEmbedding | None]:
    """What the UNet reads with each image, and what the base model reads with those whose target it predicts."""
    texts, numbers = session.texts, examples.texts
    text: TextEmbedding | TokenizedTexts
    base_text = None
    if trains_text:
        tokens, empty_rows, token_weights = texts.look_up(numbers)
        with session.accelerator.autocast():
            text = TokenizedTexts(tokens, empty_rows, token_weights, texts.frozen_outputs(numbers))
    else:
        with session.accelerator.autocast():
            text = texts.embeddings(numbers)
    if examples.predicted:
        with session.accelerator.autocast():
            base_text = texts.base_embeddings(numbers[-examples.predicted :])
    return text, base_text


def _concept_weights(session: Session, instances: Tensor) -> Tensor:
    """The loss weight of each of the subject's images, by its concept, (instances,)."""
    weights = torch.tensor([concept.loss_weight for concept in session.settings.concepts])
    return hardware.brought(weights[session.instances.concept[instances]], session.model.device)


def compute_losses(session: Session, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of a batch, and the means of the subject's and of the class's part of it; each ()."""
    settings, prediction_type = session.settings, session.model.prediction_type
    target, model_input = batch.target, inpainting_inputs.concatenate(batch.x_t, batch.inpainting)
    if batch.base_text is not None:
        prior = _base_prediction(session, model_input, batch, batch.base_text)
        target = torch.cat([target[: -len(prior)], prior.to(target.dtype)])
    prediction = predict(session, model_input, batch.t, _encode_texts(session, batch.text), batch.sizes)

    # Each image's loss is weighted before the subject's and the class's means are taken.
    choice, alpha_bar_t = settings.objective, batch.alpha_bar_t
    error = objective.error(prediction, target, choice, alpha_bar_t, batch.t)
    per_image = objective.image_means(error, batch.mask, choice.unmasked_weight)
    if choice.weighting != "none":
        per_image = per_image * objective.timestep_weight(prediction_type, choice, alpha_bar_t)
    if batch.concept_weights is not None:
        per_image[: batch.instances] *= batch.concept_weights
    return objective.dreambooth_loss(per_image, batch.instances, batch.prior_weight)


@torch.no_grad()
def _base_prediction(session: Session, model_input: Tensor, batch: Batch, text: TextEmbedding) -> Tensor:
    """What the UNet predicts with its adapters disabled for the last P rows, which read `text`: (P, 4, h, w)."""
    model_input, t, sizes = (rows[-len(text.hidden) :] for rows in (model_input, batch.t, batch.sizes))
    with disabled(session.adapters):
        return predict(session, model_input, t, text, sizes)


def predict(session: Session, model_input: Tensor, t: Tensor, text: TextEmbedding, sizes: Tensor) -> Tensor:
    """The UNet's prediction (B, 4, h, w), in the precision that the run computes in.

    `model_input` are noisy latents (B, 4, h, w); for an inpainting model as `inpainting_inputs.concatenate` gives them.
    """
    dtype = precision.plain_dtype(session.accelerator, session.settings)
    if dtype is None:
        with session.accelerator.autocast():
            return session.model.denoise(model_input, t, text, sizes)
    return session.model.denoise(model_input.to(dtype), t, text.to(dtype), sizes)


def _encode_texts(session: Session, text: TextEmbedding | TokenizedTexts) -> TextEmbedding:
    if isinstance(text, TextEmbedding):
        return text
    with session.accelerator.autocast():
        return session.texts.encode(text.tokens, text.empty_rows, text.token_weights, text.frozen)
