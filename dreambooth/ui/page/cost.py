"""What a run will cost, before anybody commits to it: read from the settings, the folders and the model's file alone.

The check looks into every picture and is exact; this answers while settings move.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dreambooth.core import checkpoint, forecast, run
from dreambooth.core.buckets import Bucket
from dreambooth.core.budget import Budget, budget
from dreambooth.core.errors import UserError
from dreambooth.core.project import Project
from dreambooth.core.quantities import duration, size
from dreambooth.core.schema import to_flat
from dreambooth.core.settings import Settings
from dreambooth.core.settings.dataset import Concept
from dreambooth.service import pictures

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

    def words(self) -> list[str]:
        if self.length is None:
            return ["No pictures yet"]
        said = [f"{self.pictures:,} pictures", f"{self.length.steps:,} steps"]
        if self.seconds:
            said.append(f"≈ {duration(self.seconds)}")
        if self.memory_bytes:
            said += [f"≈ {size(self.memory_bytes)} memory", f"{size(self.disk_bytes)} disk"]
        return said


def estimate(project: Project, settings: Settings) -> Cost:
    """About what a run with these settings takes; every picture counts as one of the full size."""
    found = [(concept, _count(concept)) for concept in settings.concepts]
    seen = sum(count * concept.repeats for concept, count in found)
    if not seen:
        return Cost(0, None, None, 0, 0)
    length = budget(settings, seen)
    memory = disk = 0
    try:
        header = checkpoint.read_header(project.source)
        side = settings.general.resolution or project.resolution
        memory = forecast.memory(header, settings, Bucket(side, side)).total
        disk = forecast.disk_bytes(header, settings, length)
    except UserError:  # the model's own line says what is wrong with its file
        pass
    pace = _pace(project, settings)
    return Cost(sum(n for _, n in found), length, length.steps / pace if pace else None, memory, disk)


def _count(concept: Concept) -> int:
    """How many pictures lie in a concept's folder; none where there is no folder."""
    folder = Path(concept.instance_data_dir).expanduser()
    return len(pictures.names(folder)) if concept.instance_data_dir.strip() and folder.is_dir() else 0


def _pace(project: Project, settings: Settings) -> float:
    """Steps a second of the last run of the same kind; 0 without one."""
    now = to_flat(settings)
    for job in reversed(run.runs(project)):
        before, pace = job.settings(), job.progress().get("steps_per_second")
        if pace and all(before.get(key) == now[key] for key in _SAME_PACE):
            return float(pace)
    return 0.0
