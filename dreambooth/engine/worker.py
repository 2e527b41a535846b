"""A training job from its folder to its result, stage by stage: the first file of the engine to read.

check what the machine and the model can do -> prepare the session (run/setup.py) -> train -> write the result
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from dreambooth.core.errors import Problem, UserError
from dreambooth.core.job_folder import Ending, Job
from dreambooth.core.models import anatomy
from dreambooth.engine import hardware, out_of_memory
from dreambooth.engine.checkpoints.source import Source, open_model
from dreambooth.engine.process.listener import asked_to_end, ends_at_once
from dreambooth.engine.run import (
    best,
    end_notice,
    imagic,
    outputs,
    rank_launcher,
    recovery,
    resuming,
    retention,
    saving,
    setup,
)
from dreambooth.engine.run.hooks import RunHooks
from dreambooth.engine.training import loop, optimizers
from dreambooth.engine.training.data_parallel import DataParallel
from dreambooth.engine.training.loop import train
from dreambooth.engine.training.step_metrics import Diverged
from dreambooth.engine.work import Asked, Work


def run(job: Job, let_end: Callable[..., None] | None = None) -> Ending:
    """Does a training job, or resumes it, and returns how it ended. Raises UserError for what a person can mend.

    `let_end` is called with the requests that may end the job by a KeyboardInterrupt from then on, wherever it is.
    """
    work = Work.open(job, let_end)
    try:
        ending = _run_with_retries(work)
    except (Asked, KeyboardInterrupt):
        ending = asked_to_end(job)
        if not ending:
            raise
    except BaseException:
        end_notice.notify_of_end(work, "failed")
        raise
    if ending != "paused" and not resuming.may_go_on(job):
        job.forget_states()
    if ending == "done":
        _show_best(work)
    end_notice.notify_of_end(work, ending)
    return ending


def _run_with_retries(work: Work) -> Ending:
    """Runs the job; after too little memory or divergence again from the last state, with settings changed for that."""
    divergences = 0
    while True:
        divergence = ""
        try:
            with out_of_memory.caught() as shortage:
                return _run(work)
        except Diverged as error:
            divergence = str(error)
        # Neither error is kept any more, and nothing that the failed attempt held.
        hardware.free_memory()
        optimizers.leave_paged()
        if divergence:
            changes, warning = recovery.after_divergence(work.settings, divergence, divergences)
            divergences += 1
        else:
            estimate = recovery.MemoryEstimate.of(work)
            changes, warning = recovery.after_out_of_memory(
                work.settings, work.phase, shortage.requested, work.together, estimate
            )
        work.job.change(changes)
        work.job.warn(warning)
        work.settings = Work.open(work.job).settings


def _run(work: Work) -> Ending:
    work.let_end(*ends_at_once(work.job))
    if ending := resuming.ended_before(work.job):
        return ending
    outputs.remove_abandoned(work.folders)
    source = _source(work, work.settings.batching.num_processes)
    setup.warn_of_precision(work)
    session, validation = setup.prepare_session(work, source)
    with rank_launcher.beside(work, session):
        work.let_end()  # from here on the loops look, at every step
        work.phase = recovery.TRAINING
        hooks = RunHooks(work, session, source, validation)
        try:
            if work.settings.imagic.enabled:
                imagic.fit_embedding(work, session, hooks)
            ending = train(session, hooks)
        finally:
            hooks.close()
    if "discard" in work.job.requests():
        return "discarded"
    if ending in ("done", "stopped"):
        work.let_end("discard")
        ending = _finish(work, hooks, ending)
    return ending


def follow(job: Job, precision: str, joined: Callable[[torch.device], AbstractContextManager[DataParallel]]) -> None:
    """Takes part in the steps of a job that the first process runs, as one of its other processes, in its precision.

    `joined` connects to it for as long as its block lasts, once the session is prepared.
    """
    work = Work.open(job)
    work.settings.tuning.mixed_precision = precision  # type: ignore[assignment]
    work.settings.reporting.tensorboard = False  # the first process writes the curves
    source = _source(work, processes=1)  # it sees only its own one of several GPUs
    session, _ = setup.prepare_session(work, source)
    with joined(session.model.device) as ranks:
        session.ranks = ranks
        loop.follow(session, RunHooks(work, session, source), ranks.is_told)


def _source(work: Work, processes: int) -> Source:
    """The model to train. Raises UserError for what this machine or this model cannot do.

    `processes` is how many processes each need a device of their own here.
    """
    setup.check_abilities(work, processes)
    source = open_model(work.project)
    if problem := anatomy.blocks_problem(work.settings, source.header):
        raise UserError(problem)
    return source


def _finish(work: Work, hooks: RunHooks, ending: Ending) -> Ending:
    """Writes the result and returns the run's ending: "paused" where only a state could be saved instead."""
    session, images = hooks.session, hooks.session.images
    work.job.report("stage", name="writing the result", done=0, total=1)
    try:
        if not (ending == "done" and saving.is_saved(work, images)):
            saving.save_result(work, session, hooks.source, images)
        retention.tidy(work, images)
    except UserError as error:
        if not hooks.save_state(wait=True):
            raise
        hooks.warn(error.and_then("Mend that and resume the run; what was learned is in its state."))
        return "paused"
    work.let_end()
    past_best = ending == "done" and session.step < session.budget.steps
    if past_best:
        hooks.keep_last_state()
    # From here on there is nothing left to do but to tidy up.
    work.job.report("result", ending=ending, **({"past_best": True} if past_best else {}))
    return ending


def _show_best(work: Work) -> None:
    """Draws previews of the run's best result, where none were drawn when it was saved.

    The run is complete by then: a failure is a warning, and a request to end is followed at once.
    """
    if (path := best.without_previews(work)) is None:
        return
    hardware.free_memory()
    try:
        work.let_end("pause", "stop", "discard")
        with out_of_memory.caught() as shortage:
            source = open_model(work.project, path if work.settings.is_full else None)
            model, accelerator = setup.load(work, source)
            best.draw(work, model, accelerator, source, path)
            return
        message = f"The memory was not enough for previews of the best: {shortage.requested}. They were left out."
        work.job.warn(Problem(message, "previews.count", "Draw fewer or smaller ones."))
    except (Asked, KeyboardInterrupt):
        return
    except UserError as error:
        work.job.warn(error.and_then("The best has no previews."))
    except OSError as error:  # of a file that is gone since, or of a drive
        reason = f"{error.filename or path}: it cannot be read ({error.strerror or error})."
        work.job.warn(f"{reason} The best has no previews.")
    finally:
        work.let_end()
