"""What a run will cost, before anybody commits to it: read from the settings, the folders and the model's file alone.

The check looks into every picture and is exact; this answers while settings move.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dreambooth.core import disk_space, forecast, job_folder, job_list, picture_files
from dreambooth.core.errors import UserError
from dreambooth.core.memory import footprint
from dreambooth.core.models import anatomy, checkpoint
from dreambooth.core.project import Folders, Project
from dreambooth.core.run_length import Budget, budget
from dreambooth.core.schema import to_flat
from dreambooth.core.settings import Settings, parse
from dreambooth.core.settings.dataset import Concept
from dreambooth.core.step_rate import steps_per_second


@dataclass(frozen=True)
class Cost:
    """Seconds are None before a first run of the kind; bytes are 0 where the model's file is gone."""

    pictures: int
    length: Budget | None  # None without pictures
    seconds: float | None
    memory_bytes: int
    disk_bytes: int
    no_room: list[str]  # a sentence for each drive that has too little for it
    class_pictures: int = 0  # that are still to be drawn,
    or_fewer: bool = False  # at most, where only the check can tell which of them are there


def estimate(folders: Folders, project: Project, settings: Settings) -> Cost:
    """About what a new run with these settings takes; every picture counts as one of the full size."""
    found = [(concept, len(picture_files.of_concept(concept))) for concept in settings.concepts]
    seen = sum(picture_files.learned(concept, count) * concept.repeats for concept, count in found)
    length = budget(settings, seen) if seen else None
    memory, disk, no_room, draws = 0, 0, list[str](), to_draw(project, settings)
    try:
        header = checkpoint.read_header(project.source)
        model, family, pixels = anatomy.of(header), project.about["family"], area(project, settings)
        memory = footprint.needs(settings, model, family, pixels, to_draw=draws).total
        if length:
            disk = forecast.disk_bytes(header, settings, length)
            no_room = disk_space.problems(folders, project, header, settings, length)
    except UserError:  # the model's own line says what is wrong with its file
        pass
    pace = steps_per_second(project, to_flat(settings))
    seconds = length.steps / pace if length and pace else None
    missing, or_fewer = _class_pictures(project, found) if draws else (0, False)
    return Cost(sum(n for _, n in found), length, seconds, memory, disk, no_room, missing, or_fewer)


def to_draw(project: Project, settings: Settings) -> bool:
    """Whether class pictures may still have to be drawn: not, where a run or short job has drawn them with all that
    they go by as it is now. The check knows it exactly."""
    if not project.class_pictures.is_dir():
        return True
    for job in reversed(job_list.jobs(project)):
        with contextlib.suppress(UserError):  # one that is damaged tells nothing
            if _has_drawn(job) and _class_picture_settings(parse(job.settings())) == _class_picture_settings(settings):
                return False
    return True


def _class_pictures(project: Project, found: Sequence[tuple[Concept, int]]) -> tuple[int, bool]:
    """How many class pictures are missing of concepts with so many pictures, and whether it may be fewer: those that
    were drawn for other settings lie among those that count."""
    missing, or_fewer = 0, False
    for concept, count in found:
        if concept.class_mode != "fill":
            continue
        wanted = concept.num_class_images_per * picture_files.learned(concept, count)
        if concept.class_data_dir.strip():
            folder = Path(concept.class_data_dir).expanduser()
            wanted = max(0, wanted - (len(picture_files.find(folder)) if folder.is_dir() else 0))
        else:
            or_fewer = or_fewer or (bool(wanted) and project.class_pictures.is_dir())
        missing += wanted
    return missing, or_fewer


def _has_drawn(job: job_folder.Job) -> bool:
    """Whether a job has come to the end of its class pictures."""
    kind, story = job.read_or_empty().get("kind"), job.story()
    return bool(story.step) if kind == "train" else kind == "class-images" and story.status == "done"


def _class_picture_settings(settings: Settings) -> tuple[object, ...]:
    """All that class pictures go by, and more."""
    return settings.concepts, settings.general, settings.pictures, settings.captions, settings.tuning


def area(project: Project, settings: Settings) -> int:
    """The pixels of each training picture, as far as the settings say; buckets have about the same."""
    return int((settings.general.resolution or project.resolution) ** 2)
