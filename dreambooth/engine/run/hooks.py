"""What the training loop asks for: reports, validation, previews, results and states.

A failure of any of them is a warning wherever training can go on without it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dreambooth.core import settings as settings_module
from dreambooth.core import validation
from dreambooth.core.errors import Problem, UserError
from dreambooth.core.settings.conflicts.of_optimizers import rates
from dreambooth.engine import hardware, out_of_memory
from dreambooth.engine.checkpoints.source import Source
from dreambooth.engine.drawing.sampling import NotDrawn
from dreambooth.engine.process.listener import asked_to_end
from dreambooth.engine.run import imagic, recovery, retention, saving
from dreambooth.engine.run.previews import report_previews
from dreambooth.engine.run.tensorboard import EventFile, curves
from dreambooth.engine.training import preview, state_writer
from dreambooth.engine.training.session import Session
from dreambooth.engine.training.state_writer import Written
from dreambooth.engine.training.validation import Validation, ValidationResult
from dreambooth.engine.work import Work

RETRY_SECONDS = 60.0  # after a state that could not be saved
_MAX_FILES_NAMED = 6  # of a step that was left out


class _Interrupted(Exception):
    """A request that cannot wait arrived while previews were drawn."""


class RunHooks:
    """Carries out what the training loop asks for (see training.loop.Hooks)."""

    def __init__(self, work: Work, session: Session, source: Source, validation: Validation | None = None) -> None:
        self.work, self.session, self.source = work, session, source
        self.validation, self.measured_at = validation, -1
        self.board = self._new_board() if work.settings.reporting.tensorboard else None
        intervals = session.settings.intervals
        kept = state_writer.retention_rule(session.budget, intervals.states_kept, intervals.states_kept_every)
        self.states = state_writer.Writer(work.job.state, kept)
        self.state_failed_at: float | None = None
        self.release_cuda_graphs: Callable[[], None] = lambda: None

    def _new_board(self) -> EventFile | None:
        """A file for the curves of this process; None where it cannot be written, which is a warning."""
        folder = self.work.job.folder / "tensorboard"
        try:
            return EventFile(folder)
        except OSError as error:
            self.warn(f"{folder}: the curves cannot be written ({error.strerror}); the run goes on without.")
            return None

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

    def warn(self, message: str | Problem) -> None:
        self.work.job.warn(message)

    def cooling(self, seconds: int) -> None:
        self.work.job.report("cooling", seconds=seconds)

    def report_skipped(self, steps: list[int]) -> None:
        """Warns of steps whose loss was not finite, with the image files of the first of them."""
        files = self.session.batch_files(steps[0])
        named, more = ", ".join(files[:_MAX_FILES_NAMED]), len(files) - _MAX_FILES_NAMED
        named += f" and {more} more" if more > 0 else ""
        which = f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
        message = (
            f"The loss was not a number at {which}, whose gradients were left out. "
            f"The pictures of step {steps[0]}: {named}."
        )
        do = f"If it comes again, look at these pictures, or lower {' and '.join(rates(self.work.settings))}."
        self.warn(Problem(message, "tuning.nonfinite_steps", do))

    def measure(self, check: Callable[[], None]) -> bool:
        """Measures the validation losses, once at each step, and saves the model where they are the best so far.

        Returns whether they have not improved for so long that the run is to end. `check` raises for weights that must
        not be saved.
        """
        session, job = self.session, self.work.job
        if self.validation is None or self.measured_at == session.step:
            return False
        self.measured_at, validated = session.step, self._validated()
        if validated is None:
            return False
        losses = {name: None if value is None else round(value, 5) for name, value in asdict(validated).items()}
        job.report("measured", step=session.step, images=session.images, **losses)
        self._draw_curves({f"validation/{name}": value for name, value in losses.items() if value is not None})
        history, settings = job.story(), session.settings
        is_best = history.best is not None and history.best.is_better and history.best.step == session.step
        if is_best and settings.saving.keep_best and session.step < session.budget.steps:
            check()
            self.save_model(session.images, asked=False, best=True)
        patience = settings.intervals.patience
        return bool(patience) and validation.measures_past(history.measures) >= patience

    def _validated(self) -> ValidationResult | None:
        """The validation losses; None where they cannot be measured, which is a warning."""
        assert self.validation is not None
        try:
            with out_of_memory.caught() as shortage:
                return self.validation.measure()
        except OSError as error:
            begin = f"{self.validation.before}: what the run is measured against cannot be written"
            self.warn(f"{begin} ({error.strerror or error}); after a pause it is not measured any more.")
        else:
            message = f"The memory was not enough to measure the run: {shortage.requested}."
            place, do = "concepts.0.held_out", "Set it to 0."
            if self.session.settings.intervals.validate_mirrored:
                place, do = "intervals.validate_mirrored", "Turn it off."
            self.warn(Problem(f"{message} It goes on without.", place, do))
            self.validation = None
        hardware.free_memory()
        return None

    def preview(self, images: int, check: Callable[[], None]) -> None:
        """Draws previews, until a person asks for something that cannot wait. `check` raises for weights that must not
        be saved."""
        work, paths = self.work, list[Path]()
        while work.settings.previews.count:
            try:
                with out_of_memory.caught() as shortage:
                    return self._draw(images, paths)
            except _Interrupted:
                if asked_to_end(work.job):
                    return None  # the previews drawn so far stay; the loop does what was asked
                check()
                self.answered("save")
                self.save_model(images, asked=True)
                continue
            except NotDrawn as error:
                return self.warn(error.and_then("These previews are left out; the run goes on."))
            except OSError as error:
                reason = error.strerror or error
                return self.warn(f"{work.job.previews}: previews cannot be written ({reason}); the run goes on.")
            hardware.free_memory()
            if not self._use_less_for_previews(shortage.requested):
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
                fitted=imagic.fitted_text(session),
                paths=paths,
                on_step=self._interrupt_if_asked,
            )
        report_previews(work, images, paths)

    def _interrupt_if_asked(self) -> None:
        """Raises between two steps of a preview for a request that cannot wait for its end."""
        if self.work.job.requests() & {"pause", "stop", "discard", "save"}:
            raise _Interrupted

    def _use_less_for_previews(self, requested: str) -> bool:
        """Has previews take less memory from now on. Returns False where they are left out instead."""
        work = self.work
        reduction = recovery.next_memory_saving(work.settings, "previews", work.together)
        if reduction is None or work.settings.memory.on_out_of_memory == "stop":
            left_out = f"The memory was not enough for previews: {requested}. They were left out; the run goes on."
            self.warn(Problem(left_out, "previews.count", "Draw fewer or smaller ones."))
            return False
        changes, name = reduction
        try:
            work.job.change(changes)
        except UserError as error:
            self.warn(error.and_then("These previews are left out; the run goes on."))
            return False
        work.settings = settings_module.parse(work.job.settings())
        if not work.settings.tuning.cuda_graphs:
            self.release_cuda_graphs()
            hardware.free_memory()
        goes_on = f"The memory was not enough for previews: {requested}. They go on with {name}."
        self.warn(Problem(goes_on, next(iter(changes))))
        return True

    def save_model(self, images: int, *, asked: bool, best: bool = False) -> None:
        """Writes the model as it is now, and removes results that need not be kept any more.

        A result that cannot be written is a warning. One that the run has written before it was killed is not written
        again, unless a person asks for it.
        """
        work = self.work
        try:
            if asked:
                saving.save_result(work, self.session, self.source, images)
            elif not saving.is_saved(work, images) and (best or not retention.is_passed(work, images)):
                mark = retention.BEST if best else retention.ON_THE_WAY
                saving.save_result(work, self.session, self.source, images, mark=mark)
        except UserError as error:
            self.warn(error.and_then("The run goes on."))
        else:
            retention.tidy(work, images)

    def save_state(self, *, wait: bool) -> bool:
        """Begins to save a state; `wait` waits until it is written. Returns False where the last state is known to have
        failed, which is a warning, and is tried again."""
        weights, rest = self.session.state()
        self.states.begin(self.session.step, {"weights": weights, "rest": rest}, self._state_written)
        if wait:
            self.states.finish(self._state_written)
        return self.state_failed_at is None

    def keep_last_state(self) -> None:
        """Saves the state that is kept of a run that ended by its patience, as a person may want it to go on."""
        weights, rest = self.session.state()
        self.states.begin(self.session.step, {"weights": weights, "rest": rest}, self._last_state_written)
        self.states.finish(self._last_state_written)

    def tend_states(self) -> bool:
        """Reports states that have been written since. Returns whether one that failed is to be tried again."""
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
        self._report_state(written)

    def _last_state_written(self, written: Written) -> None:
        if written.problem:
            self.warn(f"{written.problem} The result is written; the run can only go on from an earlier state.")
        else:
            self._report_state(written)

    def _report_state(self, written: Written) -> None:
        seconds, stalled = round(written.seconds, 3), round(written.stalled, 3)
        self.work.job.report("state", step=written.step, path=str(written.path), seconds=seconds, stalled=stalled)
