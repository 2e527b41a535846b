"""What a run will cost, before anybody commits to it: read from the settings, the folders and the model's file alone.

The check looks into every picture and is exact; this answers while settings move.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from dreambooth.core import forecast, picture_files, run
from dreambooth.core.budget import Budget, budget
from dreambooth.core.errors import UserError
from dreambooth.core.memory import footprint
from dreambooth.core.models import anatomy, checkpoint
from dreambooth.core.project import Project
from dreambooth.core.schema import to_flat
from dreambooth.core.settings import Settings, parse

_SAME_PACE = (
    "general.method",
    "general.resolution",
    "batching.train_batch_size",
    "batching.gradient_accumulation_steps",
)


@dataclass(frozen=True)
class Cost:
    """Seconds are None before a first run of the kind; bytes are 0 where the model's file is gone."""

    pictures: int
    length: Budget | None  # None without pictures
    seconds: float | None
    memory_bytes: int
    disk_bytes: int


def estimate(project: Project, settings: Settings) -> Cost:
    """About what a run with these settings takes; every picture counts as one of the full size."""
    found = [(concept, len(picture_files.of_concept(concept))) for concept in settings.concepts]
    seen = sum(picture_files.learned(concept, count) * concept.repeats for concept, count in found)
    length = budget(settings, seen) if seen else None
    memory = disk = 0
    try:
        header = checkpoint.read_header(project.source)
        model, family, pixels = anatomy.of(header), project.about["family"], area(project, settings)
        memory = footprint.needs(settings, model, family, pixels, to_draw=to_draw(project, settings)).total
        disk = forecast.disk_bytes(header, settings, length) if length else 0
    except UserError:  # the model's own line says what is wrong with its file
        pass
    pace = _pace(project, settings)
    seconds = length.steps / pace if length and pace else None
    return Cost(sum(n for _, n in found), length, seconds, memory, disk)


def to_draw(project: Project, settings: Settings) -> bool:
    """Whether class pictures may still have to be drawn: not, where a run or short job has drawn them with all that
    they go by as it is now. The check knows it exactly."""
    if not project.class_pictures.is_dir():
        return True
    for job in reversed(run.jobs(project)):
        with contextlib.suppress(UserError):  # one that is damaged tells nothing
            if _has_drawn(job) and _asked_of_class(parse(job.settings())) == _asked_of_class(settings):
                return False
    return True


def _has_drawn(job: run.Job) -> bool:
    """Whether a job has come to the end of its class pictures."""
    kind, story = job.read()["kind"], job.story()
    return bool(story.step) if kind == "train" else kind == "class-images" and story.status == "done"


def _asked_of_class(settings: Settings) -> tuple[object, ...]:
    """All that class pictures go by, and more."""
    return settings.concepts, settings.general, settings.pictures, settings.captions, settings.tuning


def area(project: Project, settings: Settings) -> int:
    """The pixels of each training picture, as far as the settings say; buckets have about the same."""
    return int((settings.general.resolution or project.resolution) ** 2)


def _pace(project: Project, settings: Settings) -> float:
    """Steps a second of the last run of the same kind; 0 without one."""
    now = to_flat(settings)
    for job in reversed(run.runs(project)):
        before, pace = job.settings(), job.progress().get("steps_per_second")
        if pace and all(before.get(key) == now[key] for key in _SAME_PACE):
            return float(pace)
    return 0.0
