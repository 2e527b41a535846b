"""Saving the result of a run: its files, the event that lists them, and a warning where nothing was learned."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from dreambooth.core import result_files
from dreambooth.core.errors import Problem, UserError
from dreambooth.core.files import atomic, paths
from dreambooth.core.settings import on_resume
from dreambooth.core.settings.conflicts.of_optimizers import rates
from dreambooth.engine import hardware, out_of_memory
from dreambooth.engine.checkpoints.source import Source
from dreambooth.engine.run import imagic, outputs, unchanged_result
from dreambooth.engine.run.outputs import Saved
from dreambooth.engine.training.session import Session
from dreambooth.engine.work import Work


def is_saved(work: Work, images: int) -> bool:
    """Whether this run saved the model after this many images before it was killed, and the file is still there.

    A result that was saved with other settings than the run has now does not count.
    """
    changes = on_resume.of_the_result(work.job.changes())
    return any(
        event.get("images") == images and event.get("changes", {}) == changes and paths.is_file(Path(event["path"]))
        for event in work.job.story().saved
    )


def save_result(work: Work, session: Session, source: Source, images: int, *, mark: str = "") -> None:
    """Writes the model as it is now and reports it.

    `mark` goes into the event of a result that the run may remove again: retention.BEST or retention.ON_THE_WAY. Raises
    UserError if the result cannot be written.
    """
    try:
        _refuse_overwritten(source)
        saved, has_effect = _write(work, session, source, images)
        _save_fitted_text(work, session, saved.path)
        _report(work, saved, images, mark)
        if not has_effect:
            _warn_of_no_effect(work, saved)
    except OSError as error:
        place = error.filename2 or error.filename or work.project.results(work.folders, work.settings)
        raise UserError(f"{place}: the result cannot be written ({error.strerror or error}).") from None


def _refuse_overwritten(source: Source) -> None:
    """Tensors that were not trained are copied from the checkpoint's file, so it must still be the same."""
    if (file := source.files.overwritten()) is not None:
        raise UserError(f"{file}: the checkpoint was overwritten while the run works with it; put the former one back.")


def _write(work: Work, session: Session, source: Source, images: int) -> tuple[Saved, bool]:
    """The files of the model as it is now, and whether it differs from what training began with.

    Where memory is too short for the EMA weights, the trained weights are written instead: training on would only end
    here again. Raises UserError if neither can be written.
    """

    def attempt(shown: AbstractContextManager[None]) -> tuple[Saved, bool]:
        with shown:
            has_effect = unchanged_result.is_changed(work.settings, session.model, source, session.trained)
            saved = outputs.save(
                work.folders, work.project, work.settings, session.model, source, session.trained, images
            )
            return saved, has_effect

    with out_of_memory.caught() as shortage:
        return attempt(session.shown())
    hardware.free_memory()
    message = f"The memory was not enough to write the model: {shortage.requested}."
    work.job.warn(Problem(f"{message} It is tried once more, with the weights as they are.", "saving.weights"))
    with out_of_memory.caught() as shortage:
        return attempt(contextlib.nullcontext())
    hardware.free_memory()
    message = f"The memory was not enough to write the model: {shortage.requested}."
    raise UserError(Problem(message, "saving.weights", "Close other programs that use the memory."))


def _save_fitted_text(work: Work, session: Session, result: Path) -> None:
    """Writes the text that Imagic has fitted for a result; where it cannot be written, the result is removed too."""
    try:
        imagic.save_embedding(work.project, result, session)
    except BaseException:  # also where a person discards the run
        atomic.discard(result)
        raise


def _report(work: Work, saved: Saved, images: int, mark: str) -> None:
    """Adds the event of a result to the job. Raises OSError if one of its files cannot be read."""
    counted = {saved.path, *saved.embeddings.values()} if work.settings.is_embedding else {saved.path}
    changes = on_resume.of_the_result(work.job.changes())
    optional: dict[str, Any] = {}
    if changes:
        optional["changes"] = changes
    if mark:
        optional[mark] = True
    if saved.embeddings:
        optional["embeddings"] = {word: str(file) for word, file in saved.embeddings.items()}
    work.job.report(
        "saved",
        kind=work.settings.result_kind,
        path=str(saved.path),
        bytes=sum(file.stat().st_size for file in counted),
        images=images,
        **optional,
        files=result_files.marks(_all_files(work, saved)),
    )


def _all_files(work: Work, saved: Saved) -> list[Path]:
    """Every file that was written for a result, itself first."""
    beside = []
    if work.settings.is_full:
        beside.append(saved.path.with_suffix(".yaml"))
    if work.settings.imagic.enabled:
        beside.append(work.project.embedding(saved.path))
    return [saved.path, *saved.embeddings.values(), *(file for file in beside if file.is_file())]


def _warn_of_no_effect(work: Work, saved: Saved) -> None:
    message = f"{saved.path.name} does not differ from what training began with: nothing was learned."
    keys = list(rates(work.settings))
    do = f"Raise {' and '.join(keys)} if these are low, and look at what is said of steps that were left out."
    work.job.warn(Problem(message, next(iter(keys), ""), do))
