"""Imagic around the training loop: the text embedding is fitted before the model is trained, and kept for drawing.

The fitted embedding of a result is in `embeddings/` of the model's folder, under the result's name: beside LoRAs or
checkpoints a WebUI would take it for one.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic
from dreambooth.core.job_folder import FITTED
from dreambooth.core.models import checkpoint
from dreambooth.core.project import Project
from dreambooth.engine.checkpoints.write import write_tensors
from dreambooth.engine.families.model import Model
from dreambooth.engine.families.text_encoding import TextEmbedding
from dreambooth.engine.training import imagic
from dreambooth.engine.training.imagic import ETA, fitted_text
from dreambooth.engine.training.loop import Hooks
from dreambooth.engine.training.session import Session
from dreambooth.engine.work import Asked, Work

__all__ = ["ETA", "fit_embedding", "fitted_text", "load_embedding", "load_target_prompt", "save_embedding"]

_SAVE_STEPS, _REPORT_SECONDS = 50, 0.5


def fit_embedding(work: Work, session: Session, hooks: Hooks) -> None:
    """Fits the text embedding to the image, or resumes that, and has the session train with it.

    Requests are served at every step. Raises Asked where the run is to end, with the progress saved for resuming.
    Raises UserError if the embedding is no longer finite.
    """
    fitting, file = imagic.Fitting(session), work.job.folder / FITTED
    if file.exists():
        fitting.restore(torch.load(file, map_location="cpu", weights_only=True))
    reported_at, check = 0.0, partial(_check, fitting, file)
    with fitting.model_frozen():
        while fitting.step < fitting.steps:
            if time.monotonic() > reported_at + _REPORT_SECONDS:
                reported_at = time.monotonic()
                work.job.report("stage", name="fitting the words", done=fitting.step, total=fitting.steps)
            try:
                work.stop_if_asked()
            except Asked:
                _save(file, fitting.state())
                raise
            _serve(session, hooks, check)
            fitting.take_step()
            if fitting.step % _SAVE_STEPS == 0 or fitting.step == fitting.steps:
                _save(file, fitting.state())
    fitting.finish()
    check()


def _serve(session: Session, hooks: Hooks, check: Callable[[], None]) -> None:
    """Serves requests that do not end the run: saves a result and draws previews with the embedding so far."""
    requests = hooks.requests()
    if "save" in requests:
        hooks.answered("save")
        check()
        hooks.save_model(session.images, asked=True)
    if "preview" in requests:
        hooks.answered("preview")
        hooks.preview(session.images, check)


def _check(fitting: imagic.Fitting, file: Path) -> None:
    """Raises UserError, before anything is saved, if the embedding is no longer finite."""
    if torch.isfinite(fitting.fitted.text.hidden).all():
        return
    file.unlink(missing_ok=True)
    raise UserError(
        "imagic.embedding_learning_rate: the words could not be fitted to the picture, as their numbers grew beyond "
        "bounds; lower it."
    )


def save_embedding(project: Project, result: Path, session: Session) -> None:
    """Writes the fitted embedding that a result is drawn with; nothing in a run without Imagic."""
    text = imagic.fitted_text(session)
    if text is None:
        return
    tensors = {"hidden": text.hidden} | ({} if text.pooled is None else {"pooled": text.pooled})
    saved = {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"dreambooth.imagic_words": imagic.target_prompt(session), "dreambooth.imagic_result": result.name}
    file = project.embedding(result)
    file.unlink(missing_ok=True)  # of a result that is gone: no two that are there have one name
    write_tensors(file, saved, metadata)


def load_target_prompt(project: Project, result: Path) -> str | None:
    """The target prompt of a result of Imagic; None for other results."""
    file = project.embedding(result)
    return checkpoint.read_header(file).metadata.get("dreambooth.imagic_words", "") if file.exists() else None


def load_embedding(model: Model, project: Project, result: Path, prompt: str, eta: float) -> TextEmbedding:
    """The text embedding to draw a result of Imagic with, (1, T, width): that of the prompt, or without one that of the
    result's target prompt, interpolated with the fitted one by `eta`.

    Raises UserError for a result that has none, or that was fitted for prompts of another length.
    """
    if (target_prompt := load_target_prompt(project, result)) is None:
        raise UserError("--eta: these weights have no fitted text; only a run of Imagic (imagic.enabled) makes one.")
    saved: dict[str, Tensor] = load_file(project.embedding(result))
    fitted = TextEmbedding(saved["hidden"], saved.get("pooled"))
    target = model.encode_text([prompt.strip() or target_prompt])
    if fitted.hidden.shape != target.hidden.shape:
        raise UserError(
            "tuning.max_token_length: the text was fitted at another length or for another model; draw with the "
            "settings of its run."
        )
    fitted.hidden = fitted.hidden.to(target.hidden.device)
    return imagic.interpolate(target, fitted, eta)


def _save(file: Path, state: dict[str, Any]) -> None:
    content = io.BytesIO()  # torch's own writer turns a full disk into an error of another kind
    torch.save(state, content)
    try:
        atomic.write_bytes(file, content.getvalue())
    except OSError as error:
        raise UserError(f"{file}: the fitted words cannot be saved ({error.strerror}).") from None
