"""How the training loop reaches the world: the run's folder and the WebUI's folders. What fails there is said, and the
training goes on wherever it can."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dreambooth.core import result_files, validation
from dreambooth.core import settings as settings_module
from dreambooth.core.errors import Problem, UserError
from dreambooth.core.settings import on_resume
from dreambooth.core.settings.conflicts.of_optimizers import rates
from dreambooth.engine.checkpoints.source import Source
from dreambooth.engine.drawing.sampling import NotDrawn
from dreambooth.engine.process.listener import asked_to_end
from dreambooth.engine.run import imagic, outputs, recovery, retention, unchanged_result
from dreambooth.engine.run.tensorboard import EventFile, curves
from dreambooth.engine.training import preview, state_writer
from dreambooth.engine.training.session import Session
from dreambooth.engine.training.state_writer import Written
from dreambooth.engine.training.validation import Validated, Validation
from dreambooth.engine.work import Work

RETRY_SECONDS = 60.0  # after a state that could not be saved
_NAMED = 6  # pictures of a step that was left out


class _Interrupted(Exception):
    """A person asks for something while previews are drawn."""


class RunHooks:
    """What the loop asks for, done."""

    def __init__(self, work: Work, session: Session, source: Source, validation: Validation | None = None) -> None:
        self.work, self.session, self.source = work, session, source
        self.validation, self.measured_at = validation, -1
        self.board = EventFile(work.job.folder / "tensorboard") if work.settings.reporting.tensorboard else None
        intervals = session.settings.intervals
        kept = state_writer.keeping(session.budget, intervals.states_kept, intervals.states_kept_every)
        self.states = state_writer.Writer(work.job.state, kept)
        self.state_failed_at: float | None = None
        self.lets_go_of_graphs: Callable[[], None] = lambda: None  # of the steps, where they have any

    def requests(self) -> set[str]:
        return self.work.job.requests()

    def answered(self, request: str) -> None:
        self.work.job.clear_request(request)

    def report(self, **fields: Any) -> None:
        self.work.job.report("step", **fields)
        self._draw_curves(curves(fields))

    def _draw_curves(self, values: dict[str, float]) -> None:
        if self.board:
            try:
                self.board.add(self.session.step, values)
            except OSError as error:
                self.warn(f"{self.board.path}: the curves cannot be written ({error.strerror}); they end here.")
                self.board = None

    def warn(self, said: str | Problem) -> None:
        self.work.job.warn(said)

    def cooling(self, seconds: int) -> None:
        self.work.job.report("cooling", seconds=seconds)

    def left_out(self, steps: list[int]) -> None:
        """Says which steps had no sound loss, and which pictures were in the first of them."""
        files = self.session.batch_files(steps[0])
        named = ", ".join(files[:_NAMED]) + (f" and {len(files) - _NAMED} more" if len(files) > _NAMED else "")
        which = f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
        said = (
            f"The loss was not a number at {which}, whose gradients were left out. "
            f"The pictures of step {steps[0]}: {named}."
        )
        do = f"If it comes again, look at these pictures, or lower {' and '.join(rates(self.work.settings))}."
        self.warn(Problem(said, "tuning.nonfinite_steps", do))

    def measure(self, check: Callable[[], None]) -> bool:
        """Measures how well the run does, once at each step, and keeps the result where it is the best. Returns whether
        the run has been past its best for so long that it is to end. `check` raises for weights that must not be saved.
        """
        session, job = self.session, self.work.job
        if self.validation is None or self.measured_at == session.step:
            return False
        self.measured_at, found = session.step, self._measured()
        if found is None:
            return False
        figures = {name: None if value is None else round(value, 5) for name, value in asdict(found).items()}
        job.report("measured", step=session.step, images=session.images, **figures)
        self._draw_curves({f"validation/{name}": value for name, value in figures.items() if value is not None})
        story, settings = job.story(), session.settings
        is_best = story.best is not None and story.best.is_better and story.best.step == session.step
        if is_best and settings.saving.keep_best and session.step < session.budget.steps:
            check()
            self.save_model(session.images, asked=False, best=True)
        patience = settings.intervals.patience
        return bool(patience) and validation.measures_past(story.measures) >= patience

    def _measured(self) -> Validated | None:
        assert self.validation is not None
        try:
            return self.validation.measure()
        except OSError as error:
            said = f"{self.validation.before}: what the run is measured against cannot be written"
            self.warn(f"{said} ({error.strerror or error}); after a pause it is not measured any more.")
        except (RuntimeError, MemoryError) as error:
            if not recovery.is_out_of_memory(error):
                raise
            said = f"The memory was not enough to measure the run: {recovery.needed(error)}."
            place, do = "concepts.0.held_out", "Set it to 0."
            if self.session.settings.intervals.validate_mirrored:
                place, do = "intervals.validate_mirrored", "Turn it off."
            self.warn(Problem(f"{said} It goes on without.", place, do))
            self.validation = None
        recovery.free_memory()
        return None

    def preview(self, images: int, check: Callable[[], None]) -> None:
        """Draws previews, until a person asks for something that cannot wait. `check` raises for weights that must not
        be saved."""
        work, paths = self.work, list[Path]()
        while work.settings.previews.count:
            try:
                return self._draw(images, paths)
            except _Interrupted:
                if asked_to_end(work.job):
                    return None  # what is drawn stays; the loop does what was asked
                check()
                self.answered("save")
                self.save_model(images, asked=True)
                continue
            except NotDrawn as error:
                return self.warn(error.and_then("These previews are left out; the run goes on."))
            except OSError as error:
                said = error.strerror or error
                return self.warn(f"{work.job.previews}: previews cannot be written ({said}); the run goes on.")
            except (RuntimeError, MemoryError) as error:
                if not recovery.is_out_of_memory(error):
                    raise
                said = recovery.needed(error)
            recovery.free_memory()
            if not self._draw_smaller(said):
                return None
        return None

    def _draw(self, images: int, paths: list[Path]) -> None:
        work, session = self.work, self.session
        folder, size = work.job.previews, work.size
        with session.accelerator.autocast(), session.shown():
            work.together = preview.together(session.model, work.settings, size)
            preview.make(
                session.model,
                work.settings,
                folder,
                images,
                size,
                fitted=imagic.text_of(session),
                paths=paths,
                on_step=self._look,
            )
        show_previews(work, images, paths)

    def _look(self) -> None:
        """Between two steps of a preview: whether something is asked that cannot wait for its end."""
        if self.work.job.requests() & {"pause", "stop", "discard", "save"}:
            raise _Interrupted

    def _draw_smaller(self, said: str) -> bool:
        """Has previews take less memory from now on, if they can; the training has lost nothing."""
        step = recovery.smaller(self.work.settings, "previews", self.work.together)
        if step is None or self.work.settings.memory.on_out_of_memory == "stop":
            left_out = f"The memory was not enough for previews: {said}. They were left out; the run goes on."
            self.warn(Problem(left_out, "previews.count", "Draw fewer or smaller ones."))
            return False
        changes, name = step
        self.work.job.change(changes)
        self.work.settings = settings_module.parse(self.work.job.settings())
        if not self.work.settings.tuning.cuda_graphs:
            self.lets_go_of_graphs()
            recovery.free_memory()
        self.warn(
            Problem(f"The memory was not enough for previews: {said}. They go on with {name}.", next(iter(changes)))
        )
        return True

    def save_model(self, images: int, *, asked: bool, best: bool = False) -> None:
        """Writes the model as it is. Where it cannot be written, this is said and the run goes on; else what need not
        stay any more is removed.

        What has been written on the way before the run was killed and went on is not written once more.
        """
        try:
            if asked:
                save_output(self.work, self.session, self.source, images)
            elif not already_written(self.work, images) and (best or not retention.is_passed(self.work, images)):
                mark = retention.BEST if best else retention.ON_THE_WAY
                save_output(self.work, self.session, self.source, images, mark=mark)
        except UserError as error:
            self.warn(error.and_then("The run goes on."))
        else:
            retention.tidy(self.work, images)

    def save_state(self, *, wait: bool) -> bool:
        """Begins to save a state, and waits until it is written if asked. Returns whether it was, as far as is known;
        if not, it has been said and is tried again."""
        weights, rest = self.session.state()
        self.states.begin(self.session.step, {"weights": weights, "rest": rest}, self._state_written)
        if wait:
            self.states.finish(self._state_written)
        return self.state_failed_at is None

    def keep_last_state(self) -> None:
        """Saves the state that stays when the run has ended by its patience: a person may want it to go on."""
        weights, rest = self.session.state()
        self.states.begin(self.session.step, {"weights": weights, "rest": rest}, self._last_state_written)
        self.states.finish(self._last_state_written)

    def tend_states(self) -> bool:
        """Tells of states that have been written. Returns whether one that failed is to be tried again."""
        self.states.poll(self._state_written)
        return self.state_failed_at is not None and time.monotonic() > self.state_failed_at + RETRY_SECONDS

    def close(self) -> None:
        """Waits for the state that is being written."""
        self.states.finish(self._state_written)

    def _state_written(self, written: Written) -> None:
        if written.problem:
            self.state_failed_at = time.monotonic()
            self.warn(f"{written.problem} The run goes on, and it is tried again.")
            return
        self.state_failed_at = None
        self._tell_of_state(written)

    def _last_state_written(self, written: Written) -> None:
        if written.problem:
            self.warn(f"{written.problem} The result is written; the run can only go on from an earlier state.")
        else:
            self._tell_of_state(written)

    def _tell_of_state(self, written: Written) -> None:
        seconds, stalled = round(written.seconds, 3), round(written.stalled, 3)
        self.work.job.report("state", step=written.step, path=str(written.path), seconds=seconds, stalled=stalled)


def show_previews(work: Work, images: int, paths: list[Path]) -> None:
    """Puts previews that were drawn after so many images on the sheet of all, and tells of them."""
    target, best = work.job.folder / "previews.png", work.job.story().best
    preview.contact_sheet(work.job.previews, work.settings, target, best=best.images if best else None)
    drawn = {"paths": [str(path) for path in paths], "prompts": preview.labels(work.settings)}
    work.job.report("preview", images=images, **drawn, sheet=str(target))


def already_written(work: Work, images: int) -> bool:
    """Whether this run has written the model of this moment before it was killed, and it is still there.

    What it wrote with other settings than it has now does not count.
    """
    changes = on_resume.of_the_result(work.job.changes())
    return any(
        event.get("images") == images and event.get("changes", {}) == changes and Path(event["path"]).is_file()
        for event in work.job.story().saved
    )


def save_output(work: Work, session: Session, source: Source, images: int, *, mark: str = "") -> None:
    """Writes the model as it is now; `mark` is what its event says, where it need not stay (retention.py). Raises
    UserError if it cannot be written."""
    try:
        _save_output(work, session, source, images, mark)
    except OSError as error:
        place = error.filename2 or error.filename or work.project.results(work.folders, work.settings)
        raise UserError(f"{place}: the result cannot be written ({error.strerror or error}).") from None


def _save_output(work: Work, session: Session, source: Source, images: int, mark: str) -> None:
    if (changed := source.files.overwritten()) is not None:
        raise UserError(
            f"{changed}: the checkpoint was overwritten while the run works with it; put the former one back."
        )
    made, has_effect = _written(work, session, source, images)
    path, words = made.path, {word: str(file) for word, file in made.embeddings.items()}
    imagic.keep(work.project, path, session)
    kind, files = work.settings.result_kind, {path, *made.embeddings.values()} if work.settings.is_embedding else {path}
    changes = on_resume.of_the_result(work.job.changes())
    changed = {"changes": changes} if changes else {}
    only: dict[str, Any] = {**({mark: True} if mark else {}), **({"embeddings": words} if words else {})}
    only["files"] = result_files.marks(_files(work, made))
    size = sum(file.stat().st_size for file in files)
    work.job.report("saved", kind=kind, path=str(path), bytes=size, images=images, **changed, **only)
    if not has_effect:
        said = f"{path.name} does not differ from what training began with: nothing was learned."
        count = list(rates(work.settings))
        do = f"Raise {' and '.join(count)} if these are low, and look at what is said of steps that were left out."
        work.job.warn(Problem(said, next(iter(count), ""), do))


def _files(work: Work, made: outputs.Saved) -> list[Path]:
    """What was written for a result, itself first."""
    beside = [made.path.with_suffix(".yaml")] if work.settings.is_full else []
    beside += [work.project.embedding(made.path)] if work.settings.imagic.enabled else []
    return [made.path, *made.embeddings.values(), *(file for file in beside if file.is_file())]


def _written(work: Work, session: Session, source: Source, images: int) -> tuple[outputs.Saved, bool]:
    """The model as it is now, in files, and whether it differs from what training began with. Where memory is too short
    for what is to be shown of it, its weights are written as they are: training again would end here again. Raises
    UserError if they cannot be written."""
    weights: list[AbstractContextManager[None]] = [session.shown(), contextlib.nullcontext()]
    for shown in weights:
        try:
            with shown:
                has_effect = unchanged_result.is_there(work.settings, session.model, source, session.trained)
                made = outputs.save(
                    work.folders, work.project, work.settings, session.model, source, session.trained, images
                )
                return made, has_effect
        except (RuntimeError, MemoryError) as error:
            if not recovery.is_out_of_memory(error):
                raise
            said = f"The memory was not enough to write the model: {recovery.needed(error)}."
        recovery.free_memory()
        if shown is weights[0]:
            work.job.warn(Problem(f"{said} It is tried once more, with the weights as they are.", "saving.weights"))
    raise UserError(Problem(said, "saving.weights", "Close other programs that use the memory."))
