"""Whether what a run still writes has room on each of the drives that it writes to."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from dreambooth.core import forecast
from dreambooth.core.files import paths
from dreambooth.core.forecast import Done
from dreambooth.core.formatting import size
from dreambooth.core.job_folder import Job
from dreambooth.core.models.model_file import Header
from dreambooth.core.project import Folders, Project
from dreambooth.core.run_length import Budget
from dreambooth.core.settings import Settings

_OFTEN = ("save_model_every", "save_model_every_steps")


@dataclass(frozen=True)
class _Part:
    """Files of one kind: where they go, how many, and of how many bytes each."""

    place: Path
    name: str
    count: int
    each: int
    mends: list[str]  # what would make them fewer

    @property
    def bytes(self) -> int:
        return self.count * self.each

    @property
    def counted_name(self) -> str:
        return f"{self.count:,} {self.name}{'' if self.count == 1 else 's'}"


def problems(
    folders: Folders, project: Project, header: Header, settings: Settings, length: Budget, job: Job | None = None
) -> list[str]:
    """A sentence for each drive that has too little; `job` is a run that has come some way, whose files are there."""
    done = _done(job) if job else Done()
    results, states = forecast.saves(settings, length, done), forecast.states(settings, length, done)
    parts = [
        _Part(
            project.results(folders, settings),
            "result",
            results,
            forecast.save_bytes(header, settings),
            _fewer_results(settings, length, done),
        ),
        _Part(project.folder, "state", states, forecast.state_bytes(header, settings), _fewer_states(settings, states)),
    ]
    drives: dict[int, list[_Part]] = {}
    try:
        for part in parts:
            drives.setdefault(_there(part.place).stat().st_dev, []).append(part)
        return [problem for some in drives.values() if (problem := _problem(some))]
    except OSError:  # a drive that is gone is told of where something is written
        return []


def _problem(parts: list[_Part]) -> str:
    """Of what goes to one drive; empty where it has room."""
    largest = max(parts, key=lambda part: part.bytes)
    needed, free = sum(part.bytes for part in parts), shutil.disk_usage(_there(largest.place)).free
    if needed <= free:
        return ""
    files = " and ".join(part.counted_name for part in parts if part.count)
    *first, last = ["make room", *(mend for part in reversed(parts) for mend in part.mends)]
    do = f"{', '.join(first)} or {last}" if first else last
    return (
        f"{largest.place}: the run has about {size(needed)} to write on this drive ({files}), but {size(free)} are "
        f"free; {do}."
    )


def _done(job: Job) -> Done:
    steps = job.states()
    there = [event for event in job.story().saved if not event.get("best") and paths.is_file(Path(event["path"]))]
    on_the_way = sum(bool(event.get("on_the_way")) for event in there)
    return Done(max(steps, default=0), len(steps), frozenset(event["images"] for event in there), on_the_way)


def _fewer_results(settings: Settings, length: Budget, done: Done) -> list[str]:
    intervals, mends = settings.intervals, []
    if forecast.saves(settings, length, done) > 1 + forecast.keeps_best(settings):
        mends = [f"raise intervals.{key}" for key in _OFTEN if getattr(intervals, key)]
        if intervals.results_kept != 1:
            mends.append(f"{'lower' if intervals.results_kept else 'set'} intervals.results_kept")
    return [*mends, *(["turn saving.keep_best off"] if forecast.keeps_best(settings) else [])]


def _fewer_states(settings: Settings, count: int) -> list[str]:
    intervals = settings.intervals
    mends = ["lower intervals.states_kept"] if intervals.states_kept > 1 and count > 1 else []
    return [*mends, *(["raise intervals.states_kept_every"] if intervals.states_kept_every and count > 1 else [])]


def _there(place: Path) -> Path:
    """The place, or the folder above it that is there."""
    return next(one for one in (place, *place.parents) if one.exists() or one == one.parent)
