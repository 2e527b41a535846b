"""Going on with a run: from which state, and with which settings."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dreambooth.core import schema, settings
from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic
from dreambooth.core.project import Folders, Project
from dreambooth.core.run import Job
from dreambooth.core.schema import to_flat
from dreambooth.core.settings import Settings, on_resume
from dreambooth.core.settings.on_resume import Difference

ENDED = ("done", "stopped")
RESTING = ("paused", "failed", "lost")  # and a state of it can be taken


def check_resumable(job: Job) -> None:
    """Raises UserError for a run that has ended, runs, or waits to run."""
    status = job.status()
    if status in (*ENDED, "running", "queued"):
        raise UserError(f"The run {job.name} cannot be resumed: it is {status}.")


def change_settings(job: Job, given: dict[str, Any]) -> dict[str, Any]:
    """Has a run go on with other settings than it began with. Returns those that differ, as dotted keys.

    Raises UserError, and changes nothing, for a run that cannot go on and for settings that must stay as they are.
    """
    check_resumable(job)
    now = job.settings()
    changed = on_resume.changes(now, schema.with_secrets(Settings, given, now))
    if changed:
        _check_unfinished(job)
        job.change(changed)
    return changed


def differences(job: Job, opened: Project) -> list[Difference]:
    """How the model's own settings differ from those that its run has."""
    return on_resume.differences(*(to_flat(settings.parse(one)) for one in (job.settings(), opened.settings())))


def prospect(job: Job, opened: Project) -> dict[str, Any]:
    """What going on with the model's own settings comes to: each that differs, hidden where it is a secret, and
    whatever stands in the way of taking those that may change."""
    found, problems = differences(job, opened), list[str]()
    try:
        on_resume.changes(job.settings(), _taken(found))
        if _taken(found):
            _check_unfinished(job)
    except UserError as error:
        problems = error.problems
    shown = [replace(one, now=_shown(one.key, one.now), given=_shown(one.key, one.given)) for one in found]
    return {"differences": [asdict(one) for one in shown], "problems": problems}


def take_model_settings(job: Job, opened: Project) -> list[Difference]:
    """Has a run go on with the model's own settings where they may change; the others stay as the run has them.

    Returns all that differ. Raises UserError, and changes nothing, as `change_settings` does.
    """
    found = differences(job, opened)
    change_settings(job, _taken(found))
    return found


def _taken(found: list[Difference]) -> dict[str, Any]:
    return {one.key: one.given for one in found if not one.why_not}


def _shown(key: str, value: Any) -> Any:
    return schema.without_secrets(Settings, {key: value})[key]


def _check_unfinished(job: Job) -> None:
    if "result" in job.story().last:
        raise UserError(f"The run {job.name} has written its result already; resume it as it is.")


def states(job: Job) -> list[int]:
    """The steps after which a state was saved that is still there, the earliest first."""
    return sorted(int(path.name) for path in job.state.glob("*") if path.name.isdigit()) if job.state.is_dir() else []


def go_back(folders: Folders, job: Job, step: int) -> None:
    """Has a run go on from an earlier state when it is resumed: the later ones are moved to the trash.

    Raises UserError, and moves nothing, for a run that cannot go on or a step without a state.
    """
    check_resumable(job)
    there = states(job)
    if step not in there:
        known = ", ".join(map(str, there)) or "none"
        raise UserError(f"from_step: the run {job.name} has no state after step {step} (there: {known}).")
    later = [one for one in there if one > step]
    if later:
        _check_unfinished(job)
    for one in reversed(later):
        _to_trash(folders, job, job.state / f"{one:09}")


def _to_trash(folders: Folders, job: Job, state: Path) -> None:
    name, number = f"{job.name.replace('/', ' run ')} state {state.name}", 1
    while (target := folders.trash / f"{name}{f' {number}' if number > 1 else ''}").exists():
        number += 1
    try:
        folders.trash.mkdir(exist_ok=True)
        atomic.move(state, target)
    except OSError as error:
        raise UserError(f"{state}: it cannot be moved to the trash ({error.strerror}).") from None
