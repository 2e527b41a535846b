"""Previews of a run's best result, drawn when the run has ended, as until then a better one may come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dreambooth.core.errors import UserError
from dreambooth.core.models.checkpoint import read_header
from dreambooth.engine.checkpoints import lora, words_file
from dreambooth.engine.checkpoints.source import Source
from dreambooth.engine.families.model import Model
from dreambooth.engine.run.previews import report_previews
from dreambooth.engine.run.retention import written_of_best
from dreambooth.engine.training import adapters, preview
from dreambooth.engine.work import Work


def without_previews(work: Work) -> Path | None:
    """The file of the best result, if previews are asked for and none were drawn when it was saved."""
    story = work.job.story()
    if story.best is None or not story.best.is_better or story.best.images in story.previews:
        return None
    if not work.settings.previews.count:
        return None
    return written_of_best(story)


def draw(work: Work, model: Model, accelerator: Any, source: Source, path: Path) -> None:
    """Draws previews with the result at `path`. `model` is the base model where that is a LoRA or an embedding, else
    the result itself. Raises UserError where they cannot be written."""
    story, settings, folder = work.job.story(), work.settings, work.job.previews
    assert story.best is not None
    if settings.is_lora:
        layers, words = lora.read(path, source.tensors, source.about.family), words_file.read(read_header(path))
        adapters.make_trainable(model, settings, lora.by_module(layers, model.parts), words)
    elif settings.is_embedding:
        model.set_learned_tokens(words_file.read(read_header(path)))
    images = story.best.images
    work.stage("previews of the best", 0, 1)
    try:
        with accelerator.autocast():
            paths = preview.make(model, settings, folder, images, work.size, on_step=work.stop_if_asked)
        report_previews(work, images, paths)
    except OSError as error:
        raise UserError(f"{folder}: previews cannot be written ({error.strerror or error}).") from None
