"""One job from its folder to its outputs, stage by stage: the first file of the engine to read.

its abilities -> the beginning (run/setup.py) -> training -> outputs
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from dreambooth.core.errors import Problem, UserError
from dreambooth.core.job_folder import Job
from dreambooth.core.models import anatomy
from dreambooth.engine.checkpoints.source import Source, open_model
from dreambooth.engine.process.listener import asked_to_end, ends_at_once
from dreambooth.engine.run import best, end_notice, imagic, outputs, rank_launcher, recovery, resuming, retention, setup
from dreambooth.engine.run.hooks import RunHooks, already_written, save_output
from dreambooth.engine.training import loop, optimizers
from dreambooth.engine.training.data_parallel import DataParallel
from dreambooth.engine.training.loop import Ending, train
from dreambooth.engine.training.step_metrics import Diverged
from dreambooth.engine.work import Asked, Work


def run(job: Job, let_end: Callable[..., None] | None = None) -> Ending:
    """Does a training job, or goes on with it. Raises UserError for what a person can mend.

    `let_end` says which requests may end it by a KeyboardInterrupt from now on, wherever it is.
    """
    work = Work.open(job, let_end)
    try:
        ending = _persist(work)
    except (Asked, KeyboardInterrupt):
        ending = asked_to_end(job)
        if not ending:
            raise
    except BaseException:
        end_notice.tell_of_end(work, "failed")
        raise
    if ending != "paused" and not resuming.may_go_on(job):
        job.forget_states()
    if ending == "done":
        _show_best(work)
    end_notice.tell_of_end(work, ending)
    return ending


def _persist(work: Work) -> Ending:
    """Tries, and where memory is short or training runs away, tries again from the last state."""
    turns_back = 0
    while True:
        phase = ""
        try:
            return _run(work)
        except Diverged as error:
            diverged, said = True, str(error)
        except (RuntimeError, MemoryError) as error:
            if not recovery.is_out_of_memory(error):
                raise
            diverged, said, phase = False, recovery.needed(error), work.phase
        # The error is forgotten here, and with it everything that it held.
        recovery.free_memory()
        optimizers.leave_paged()
        if diverged:
            changes, warning = recovery.diverged(work.settings, said, turns_back)
            turns_back += 1
        else:
            task = recovery.Task.of(work)
            changes, warning = recovery.out_of_memory(work.settings, phase, said, work.together, task)
        work.job.change(changes)
        work.job.warn(warning)
        work.settings = Work.open(work.job).settings


def _run(work: Work) -> Ending:
    work.let_end(*ends_at_once(work.job))
    if ending := resuming.ended_before(work.job):
        return ending
    outputs.remove_abandoned(work.folders)
    source = _source(work, work.settings.batching.num_processes)
    setup.warn_of_bf16(work)
    session, measured = setup.prepare_session(work, source)
    with rank_launcher.beside(work, session):
        work.let_end()  # from here on the loops look, at every step
        work.phase = recovery.TRAINING
        hooks = RunHooks(work, session, source, measured)
        try:
            if work.settings.imagic.enabled:
                imagic.fit_words(work, session, hooks)
            ending = train(session, hooks)
        finally:
            hooks.close()
    if "discard" in work.job.requests():
        return "discarded"
    if ending in ("done", "stopped"):
        work.let_end("discard")
        ending = _finish(work, hooks, ending)
    return ending


def follow(job: Job, joined: Callable[[torch.device], AbstractContextManager[DataParallel]]) -> None:
    """Takes part in the steps of a job that another process does. `joined` joins it, once this one has all it needs."""
    work = Work.open(job)
    work.settings.reporting.tensorboard = False  # the other draws the curves
    source = _source(work, processes=1)  # of several cards it sees its own alone
    session, _ = setup.prepare_session(work, source)
    with joined(session.model.device) as ranks:
        session.ranks = ranks
        loop.follow(session, RunHooks(work, session, source), ranks.is_told)


def _source(work: Work, processes: int) -> Source:
    """The model that is taught. Raises UserError for what this machine or this model cannot do.

    `processes` is how many must find a device of their own here.
    """
    setup.check_abilities(work, processes)
    source = open_model(work.project)
    if problem := anatomy.blocks_problem(work.settings, source.header):
        raise UserError(problem)
    return source


def _finish(work: Work, hooks: RunHooks, ending: Ending) -> Ending:
    """Writes the result. Where that is not possible, the state is saved instead and the run pauses."""
    session, images = hooks.session, hooks.session.images
    work.job.report("stage", name="writing the result", done=0, total=1)
    try:
        if not (ending == "done" and already_written(work, images)):
            save_output(work, session, hooks.source, images)
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
    """Draws the previews of the moment at which the run was best, from the result that was kept of it, where none were
    drawn then. The result is there already: what fails is said, and whoever asks for an end has it at once."""
    if (path := best.without_previews(work)) is None:
        return
    recovery.free_memory()
    try:
        work.let_end("pause", "stop", "discard")
        source = open_model(work.project, path if work.settings.is_full else None)
        model, accelerator = setup.load(work, source)
        best.draw(work, model, accelerator, source, path)
    except (Asked, KeyboardInterrupt):
        return
    except UserError as error:
        work.job.warn(error.and_then("The best has no previews."))
    except (RuntimeError, MemoryError) as error:
        if not recovery.is_out_of_memory(error):
            raise
        said = f"The memory was not enough for previews of the best: {recovery.needed(error)}. They were left out."
        work.job.warn(Problem(said, "previews.count", "Draw fewer or smaller ones."))
    finally:
        work.let_end()
