"""Going on with a run: from which state, and with which settings."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dreambooth.core import schema, settings, validation
from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic, paths
from dreambooth.core.job_folder import Job
from dreambooth.core.project import Folders, Project
from dreambooth.core.schema import to_flat
from dreambooth.core.settings import Settings, on_resume
from dreambooth.core.settings.on_resume import Difference
from dreambooth.service import preflight
from dreambooth.service.field_names import called

ENDED = ("done", "stopped")
RESTING = ("paused", "failed", "lost")  # and a state of it can be taken


def rests(job: Job, status: str) -> bool:
    """Whether a run can go on from a state. One that ended by its patience keeps its last."""
    return status in RESTING or (status == "done" and bool(job.states()))


def check_resumable(job: Job) -> None:
    """Raises UserError for a run that has ended, runs, or waits to run."""
    status = job.status()
    if status in ("running", "queued"):
        raise UserError(f"The run {job.name} cannot be resumed: it is {status}.")
    if status in ENDED and not rests(job, status):
        raise UserError(f"The run {job.name} cannot be resumed: it is {status}.{_from_its_result(job)}")


def _from_its_result(job: Job) -> str:
    """How what it has learned can be learned on."""
    written = [event["path"] for event in job.story().saved if paths.is_file(Path(event["path"]))]
    if not written:
        return ""
    if not (chosen := settings.parse(job.settings())).is_full:
        key = "lora.start_file" if chosen.is_lora else "embedding.start_file"
        return f" A new run learns on from what it wrote with {key} {written[-1]}."
    return f" What it wrote can be learned on from in a new model that is made from {written[-1]}."


def prepare(
    folders: Folders, job: Job, given: Mapping[str, Any], from_step: int | None = None, *, label: str = "{}"
) -> dict[str, Any]:
    """Has a run go on with other settings than it began with when it is resumed, and from an earlier state if one is
    named: the later ones are moved to the trash. Returns the settings that differ, as dotted keys. `label` shows a
    person a key's name, as --{} does.

    Raises UserError, and changes and moves nothing, for a run that cannot go on, settings that must stay as they are, a
    step without a state, and for what the run would be refused for as soon as it goes on.
    """
    check_resumable(job)
    job.come_to(folders)
    now, given = job.settings(), {**_without_patience(job), **given}
    changed = on_resume.changes(now, schema.with_secrets(Settings, given, now))
    if problem := _impatient(job, {**now, **changed}):
        raise UserError(problem)
    later = [] if from_step is None else _after(job, from_step, label)
    if changed or later:
        _check_unfinished(job)
    preflight.check(job, changed, from_step)
    moved = dict[Path, Path]()
    try:
        for step in reversed(later):
            state = job.state / f"{step:09}"
            moved[state] = _to_trash(folders, job, state)
        if changed:
            job.change(changed)
    except (UserError, OSError):
        for state, target in moved.items():
            with contextlib.suppress(OSError):
                atomic.move(target, state)
        raise
    return changed


def _after(job: Job, step: int, label: str) -> list[int]:
    """The states that lie after one. Raises UserError if that one is not there."""
    there = job.states()
    if step not in there:
        known = ", ".join(map(str, there)) or "none"
        raise UserError(
            f"{called('from_step', label)}: the run {job.name} has no state after step {step} (there: {known})."
        )
    return [one for one in there if one > step]


def _without_patience(job: Job) -> dict[str, Any]:
    """What a run that ended by its patience goes on with, as it would end at once."""
    return {"intervals.patience": 0} if job.status() == "done" else {}


def _impatient(job: Job, flat: Mapping[str, Any]) -> str:
    """Why a run that ended by its patience would end again at once; empty if it would not."""
    past, patience = validation.measures_past(job.story().measures), flat.get("intervals.patience", 0)
    if job.status() != "done" or not 0 < patience <= past:
        return ""
    return f"intervals.patience: the run is {past} measures past its best already; give more, or 0 to go on to its end."


def differences(job: Job, opened: Project) -> list[Difference]:
    """How the model's own settings differ from those that its run has."""
    return on_resume.differences(*(to_flat(settings.parse(one)) for one in (job.settings(), opened.settings())))


def prospect(job: Job, opened: Project) -> dict[str, Any]:
    """What going on with the model's own settings comes to: each that differs, hidden where it is a secret, and
    whatever stands in the way of taking those that may change."""
    found, problems = differences(job, opened), list[str]()
    try:
        changed = on_resume.changes(job.settings(), {**_without_patience(job), **takeable(found)})
        if changed:
            _check_unfinished(job)
            problems = preflight.problems(job, changed)
            problems += [problem for problem in [_impatient(job, {**job.settings(), **changed})] if problem]
        if problems:  # what holds without the changes too does not speak against them
            without = preflight.problems(job)
            problems = [one for one in problems if one not in without]
    except UserError as error:
        problems = error.problems
    shown = [replace(one, now=_shown(one.key, one.now), given=_shown(one.key, one.given)) for one in found]
    return {"differences": [asdict(one) for one in shown], "problems": problems}


def takeable(found: list[Difference]) -> dict[str, Any]:
    """Those of the model's settings that a run may go on with; the others stay as the run has them."""
    return {one.key: one.given for one in found if not one.why_not}


def _shown(key: str, value: Any) -> Any:
    return schema.without_secrets(Settings, {key: value})[key]


def _check_unfinished(job: Job) -> None:
    if "result" in job.story().last:
        raise UserError(f"The run {job.name} has written its result already; resume it as it is.")


def _to_trash(folders: Folders, job: Job, state: Path) -> Path:
    """Returns where it lies by then."""
    name, number = f"{job.name.replace('/', ' run ')} state {state.name}", 1
    while (target := folders.trash / f"{name}{f' {number}' if number > 1 else ''}").exists():
        number += 1
    try:
        folders.trash.mkdir(exist_ok=True)
        atomic.move(state, target)
    except OSError as error:
        raise UserError(f"{state}: it cannot be moved to the trash ({error.strerror}).") from None
    return target
