"""Jobs as the command line, the page and the API see them: what they say, what they wrote, what may be asked."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from dreambooth.core import job_list, project, settings
from dreambooth.core.errors import Problem, UserError
from dreambooth.core.files import confinement, paths
from dreambooth.core.job_folder import Job, Request
from dreambooth.core.job_history import Event, JobHistory
from dreambooth.core.models import checkpoint
from dreambooth.core.project import Folders, Project
from dreambooth.core.settings import Settings
from dreambooth.service import exit_causes, launcher, resume_run

Answer = dict[str, Any]


def summary(job: Job) -> dict[str, Any]:
    """What the page and the command line show of a run, from its folder alone."""
    story, status = job.story(), job.status()
    last = story.step
    return {
        "run": job.name,
        "number": int(job.folder.name),
        "status": status,
        **_as_json(errors(job, status)),
        "warnings": [one.as_json() for one in story.warnings],
        "step": last.get("step", 0) if status == "running" else story.reached,
        "steps": last.get("steps", 0),
        "loss": last.get("loss"),
        "seconds_left": last.get("seconds_left"),
        "outputs": [event["path"] for event in story.saved],
        "embeddings": story.saved[-1].get("embeddings", {}) if story.saved else {},  # of the last, by their words
        "best": asdict(story.best) if story.best else None,
        "measured": asdict(story.measures[-1]) if story.measures else None,
        "previews": str(job.folder / "previews.png") if (job.folder / "previews.png").exists() else None,
        "created": job.read_or_empty().get("created"),
        "resumable": status == "new" or resume_run.rests(job, status),
        "offset": story.offset,
        "folder": str(job.folder),
    }


def of_all(folders: Folders) -> Answer:
    """The runs of all models, and in `problems` (and taken apart in `errors`) which models are damaged."""
    found, problems = list[Answer](), list[Problem]()
    for name in project.names(folders):
        try:
            found += [summary(job) for job in job_list.runs(project.open_project(folders, name))]
        except UserError as error:
            problems += error.errors
    return {"runs": found, **_as_json(problems)}


def errors(job: Job, status: str) -> list[Problem]:
    """Why a run failed or was lost, its last engine never began, or its folder is damaged; empty where nothing is
    wrong."""
    try:
        job.read()
        if status not in ("running", "queued") and (problem := exit_causes.early(job)):
            return [problem]
        if status in ("failed", "lost"):
            launcher.result(job)
    except UserError as error:
        return error.errors
    return []


def _as_json(found: list[Problem]) -> Answer:
    """Problems as answers hold them; none of them is no error."""
    return UserError(found).as_json()


def outcome(job: Job) -> dict[str, Any]:
    """An errand's status, how far it is, and its answer once it is done."""
    story, status = job.story(), job.status()
    ending = story.ending if story.status == "done" else None
    return {
        "errand": job.name,
        "number": int(job.folder.name),
        "kind": job.read_or_empty().get("kind", ""),
        "status": status,
        **_as_json(errors(job, status)),
        "warnings": [one.as_json() for one in story.warnings],
        "stage": story.stage,
        "result": {key: value for key, value in (ending or {}).items() if key not in ("event", "time")},
        "offset": story.offset,
    }


def ask(job: Job, what: Request) -> dict[str, Any]:
    """Asks a running engine for something. A job that waits to start is taken out of the queue by pause, stop and
    discard. Raises UserError if it does neither."""
    if what in ("pause", "stop", "discard") and job.leave_queue():
        return {"run": job.name, "asked": what}
    if not job.is_alive():
        raise UserError(f"{job.subject} is not running: it is {job.status()}.")
    job.request(what)
    return {"run": job.name, "asked": what}


def weights(opened: Project, file: str, *, base: bool) -> Path | None:
    """The file that is meant: the one that was named, or the newest result; None for the base model.

    Raises UserError for a file that is no checkpoint, LoRA or embedding, or when both are asked for.
    """
    if file and base:
        raise UserError("weights, base: these exclude each other; name one.")
    if file:
        path = confinement.named(file, "weights")
        about = checkpoint.describe(checkpoint.read_header(path))
        if about.kind not in ("checkpoint", "lora", "embedding"):
            raise UserError(f"{path}: this is no checkpoint, LoRA or embedding.")
        return path
    return None if base else _newest_output(opened)


def _newest_output(opened: Project) -> Path | None:
    """The last file that a run of this model wrote and that is still there."""
    for job in reversed(job_list.runs(opened)):
        for event in reversed(job.story().saved):
            if paths.is_file(Path(event["path"])):
                return Path(event["path"])
    return None


def settings_of(opened: Project, file: Path | None) -> Settings:
    """The settings of the run that wrote the weights, so that prompts are read as it read them; without weights those
    of the newest run, to compare with; else the model's own."""
    for job in reversed(job_list.runs(opened)):
        if file is None or str(file) in (event["path"] for event in written(job.story())):
            return settings.parse(job.settings())
    return settings.parse(opened.settings())


def is_best(story: JobHistory, event: Event) -> bool:
    """Whether what was written is a run's own result of the moment that it was best, as far as that was measured, and
    better than before the run."""
    best = story.best
    return best is not None and best.is_better and event["event"] == "saved" and event["images"] == best.images


def written(story: JobHistory) -> list[Event]:
    """What there is of a run: its results, the newest first, then what was exported of its states, so that the first
    is what the run itself has come to."""
    return [*reversed(story.saved), *reversed(story.exported)]


def written_to(opened: Project, file: str) -> list[tuple[Job, Event]]:
    """The runs that have written a file of this very path, with what they say of it, the newest first.

    Raises UserError where none has, and where it is gone.
    """
    found = [
        (job, event)
        for job in reversed(job_list.runs(opened))
        for event in written(job.story())
        if event["path"] == file and paths.is_file(Path(file))
    ]
    if not found:
        raise UserError(
            f"{file}: no run of {opened.name} has written this file, or it is gone; choose another of its results."
        )
    return found


def outputs(opened: Project) -> list[dict[str, Any]]:
    """The files that there are of a model's runs and that are still there, those of the newest run first; `step` is of
    the state that one was exported from, None for a run's own, `best` whether the run was best then."""
    return [
        {
            "run": job.name,
            "step": event.get("step"),
            **{key: event[key] for key in ("path", "kind", "images", "bytes")},
            "best": is_best(story, event),
        }
        for job in reversed(job_list.runs(opened))
        for story in [job.story()]
        for event in written(story)
        if paths.is_file(Path(event["path"]))
    ]
