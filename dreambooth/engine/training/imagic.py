"""Imagic (Kawar et al. 2022, arXiv 2210.09276): one picture is edited by a text.

A, section 3.2: the target text's embedding e_tgt is fitted to the picture, with the model as it is, which gives e_opt.
B: the model is fitted to the picture as it is read with e_opt, by the training loop.
C: pictures are drawn with eta e_tgt + (1 - eta) e_opt (equation 3): 0 gives the picture, 1 the text.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dreambooth.engine.drawing.sampling import make_scheduler
from dreambooth.engine.families.text_encoding import TextEmbedding
from dreambooth.engine.training import loss
from dreambooth.engine.training.session import Session

ETA = 0.7  # section 4: 0.6 to 0.8 keeps the picture and follows the text
SHOWN = (0.0, 0.4, 0.6, 0.8, 1.0)  # in previews


def blended(target: TextEmbedding, fitted: TextEmbedding, eta: float) -> TextEmbedding:
    """The text between both, for each row of `target` (B, T, width): SDXL's pooled text in the same way."""
    hidden = torch.lerp(fitted.hidden.to(target.hidden).expand_as(target.hidden), target.hidden, eta)
    pooled = None
    if target.pooled is not None and fitted.pooled is not None:
        pooled = torch.lerp(fitted.pooled.to(target.pooled).expand_as(target.pooled), target.pooled, eta)
    return TextEmbedding(hidden, pooled, target.mask)


class Fitted:
    """The one text that every picture of the run is read with, in place of the texts' table."""

    def __init__(self, text: TextEmbedding) -> None:
        self.text = text

    def embeddings(self, numbers: Tensor) -> TextEmbedding:
        return self.text[torch.zeros(len(numbers), dtype=torch.long, device=self.text.hidden.device)]


class Fitting:
    """Step A, as far as it has come. Adam with a constant rate, as in the paper."""

    def __init__(self, session: Session) -> None:
        self.session, chosen = session, session.settings.imagic
        self.steps, self.step = chosen.embedding_steps, 0
        with torch.no_grad():
            target = session.model.encode_text([target_words(session)])
        self.values = {"hidden": nn.Parameter(target.hidden.clone())}
        if target.pooled is not None:
            self.values["pooled"] = nn.Parameter(target.pooled.clone())
        self.fitted = Fitted(TextEmbedding(self.values["hidden"], self.values.get("pooled"), target.mask))
        adam = torch.optim.Adam(self.values.values(), lr=chosen.embedding_learning_rate)
        self.optimizer = session.accelerator.prepare(adam)
        session.texts = self.fitted
        self.alpha_bar = make_scheduler("ddim", session.model).alphas_cumprod.to(session.model.device)

    def take_step(self) -> None:
        session, batch = self.session, self.session.budget.batch
        seed = session.settings.general.seed + 1  # other noise than the model's training
        torch.manual_seed((seed * 1_000_003 + self.step * batch) % 2**63)
        made = loss.make_batch(session, self.step * batch, self.alpha_bar, trains_text=False)
        session.accelerator.backward(loss.compute_losses(session, made)[0])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1

    def state(self) -> dict[str, Any]:
        """Everything that going on needs, in the form that torch saves."""
        scaler = self.session.accelerator.scaler
        return {
            "step": self.step,
            "values": {name: value.detach() for name, value in self.values.items()},
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
        }

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Puts a state back. What the model's training has changed since is left alone."""
        self.step = state["step"]
        for name, value in self.values.items():
            value.copy_(state["values"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.session.accelerator.scaler and state["scaler"] and not self.session.step:
            self.session.accelerator.scaler.load_state_dict(state["scaler"])

    def finish(self) -> None:
        """From now on the text stays as it is."""
        for value in self.values.values():
            value.requires_grad_(False)

    @contextmanager
    def model_resting(self) -> Iterator[None]:
        """Nothing of the model learns meanwhile."""
        learning = [weight for weight in self.session.trained.named().values() if weight.requires_grad]
        self.session.model.unet.train()
        for weight in learning:
            weight.requires_grad_(False)
        try:
            yield
        finally:
            for weight in learning:
                weight.requires_grad_(True)


def target_words(session: Session) -> str:
    """What the picture is to become: the words that it is read with, and that previews show."""
    return session.readings.first(int(session.instances.prompt[0]))


def text_of(session: Session) -> TextEmbedding | None:
    """The text that was fitted to the picture; None in another kind of run."""
    return session.texts.text if isinstance(session.texts, Fitted) else None
