"""Imagic (Kawar et al. 2022, arXiv 2210.09276): one image is edited by a text. Its three steps, section 3.2:

A: the target text's embedding e_tgt is optimized to reconstruct the image, with the model frozen, which gives e_opt.
B: the model is fine-tuned on the image with e_opt, by the training loop.
C: images are drawn with eta e_tgt + (1 - eta) e_opt (equation 3): eta 0 gives the image, 1 the text.
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
PREVIEW_ETAS = (0.0, 0.4, 0.6, 0.8, 1.0)


def interpolate(target: TextEmbedding, fitted: TextEmbedding, eta: float) -> TextEmbedding:
    """eta target + (1 - eta) fitted: `target` is (B, T, width), `fitted` (1, T, width); SDXL's pooled text likewise."""
    hidden = torch.lerp(fitted.hidden.to(target.hidden).expand_as(target.hidden), target.hidden, eta)
    pooled = None
    if target.pooled is not None and fitted.pooled is not None:
        pooled = torch.lerp(fitted.pooled.to(target.pooled).expand_as(target.pooled), target.pooled, eta)
    return TextEmbedding(hidden, pooled, target.mask)


class FittedText:
    """The one text embedding of all batches, in the place of `text_embeddings.Texts`."""

    def __init__(self, text: TextEmbedding) -> None:
        self.text = text

    def embeddings(self, numbers: Tensor) -> TextEmbedding:
        return self.text[torch.zeros(len(numbers), dtype=torch.long, device=self.text.hidden.device)]


class Fitting:
    """Step A and its progress. Adam with a constant learning rate, as in the paper."""

    def __init__(self, session: Session) -> None:
        self.session, chosen = session, session.settings.imagic
        self.steps, self.step = chosen.embedding_steps, 0
        with torch.no_grad():
            target = session.model.encode_text([target_prompt(session)])
        self.parameters = {"hidden": nn.Parameter(target.hidden.clone())}
        if target.pooled is not None:
            self.parameters["pooled"] = nn.Parameter(target.pooled.clone())
        self.fitted = FittedText(TextEmbedding(self.parameters["hidden"], self.parameters.get("pooled"), target.mask))
        adam = torch.optim.Adam(self.parameters.values(), lr=chosen.embedding_learning_rate)
        self.optimizer = session.accelerator.prepare(adam)
        session.texts = self.fitted
        self.alpha_bar = make_scheduler("ddim", session.model).alphas_cumprod.to(session.model.device)

    def take_step(self) -> None:
        session = self.session
        position = self.step * session.budget.batch
        seed = session.settings.general.seed + 1  # other noise than the model's training
        torch.manual_seed((seed * 1_000_003 + position) % 2**63)
        batch = loss.make_batch(session, position, self.alpha_bar, trains_text=False)
        session.accelerator.backward(loss.compute_losses(session, batch)[0])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1

    def state(self) -> dict[str, Any]:
        """Everything that resuming needs, as torch.save takes it."""
        scaler = self.session.accelerator.scaler
        return {
            "step": self.step,
            "values": {name: value.detach() for name, value in self.parameters.items()},
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
        }

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Restores a state; not the gradient scale where the model's training has changed it since."""
        self.step = state["step"]
        for name, value in self.parameters.items():
            value.copy_(state["values"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.session.accelerator.scaler and state["scaler"] and not self.session.step:
            self.session.accelerator.scaler.load_state_dict(state["scaler"])

    def finish(self) -> None:
        """Freezes the text embedding."""
        for value in self.parameters.values():
            value.requires_grad_(False)

    @contextmanager
    def model_frozen(self) -> Iterator[None]:
        """Freezes the model's trained weights until the block ends."""
        trained = [weight for weight in self.session.trained.named().values() if weight.requires_grad]
        self.session.model.unet.train()
        for weight in trained:
            weight.requires_grad_(False)
        try:
            yield
        finally:
            for weight in trained:
                weight.requires_grad_(True)


def target_prompt(session: Session) -> str:
    """The prompt of the edited image: its caption, as previews read it."""
    return session.caption_schedule.first(int(session.instances.prompt[0]))


def fitted_text(session: Session) -> TextEmbedding | None:
    """The text embedding that was fitted to the image; None in a run without Imagic."""
    return session.texts.text if isinstance(session.texts, FittedText) else None
