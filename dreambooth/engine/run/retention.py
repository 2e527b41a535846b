"""Which of its own results a run removes again: one that was the best, once a better one is written, and of those that
it wrote at its intervals all but the newest.

What a person has asked for, has changed, has given a picture or notes in the WebUI, or needs for something else stays.
"""

from __future__ import annotations

from pathlib import Path

from dreambooth.core import result_files
from dreambooth.core.job_history import Event, JobHistory
from dreambooth.core.settings import Settings, on_resume
from dreambooth.engine.work import Work

BEST, ON_THE_WAY = "best", "on_the_way"  # what the event of a result says that was written for that alone


def tidy(work: Work, images: int) -> None:
    """Removes what need not stay any more. `images` is the moment that the run is at, whose result is its last by now.

    To be called once the newest result is on the disk; what a kill has left then goes at the next call.
    """
    story = work.job.story()
    for event in [*_former_bests(story), *_older(story, work.settings, images)]:
        _remove(work, event)


def _former_bests(story: JobHistory) -> list[Event]:
    """What was written only for having been the best, where a later one is; none where that could not be written."""
    if story.best is None or written_of_best(story) is None:
        return []
    return [event for event in story.saved if event.get(BEST) and event["images"] < story.best.images]


def written_of_best(story: JobHistory) -> Path | None:
    """The result of the moment at which the run was best; None where none is there."""
    written = (Path(event["path"]) for event in story.saved if story.best and event["images"] == story.best.images)
    return next((path for path in written if path.is_file()), None)


def _older(story: JobHistory, settings: Settings, images: int) -> list[Event]:
    if not settings.intervals.results_kept:
        return []
    stay = {images}
    if settings.saving.keep_best and story.best and story.best.is_better:
        stay.add(story.best.images)
    older = _on_the_way(story)[: -settings.intervals.results_kept]
    return [event for event in older if event["images"] not in stay]


def _on_the_way(story: JobHistory) -> list[Event]:
    """What was written at the run's intervals and is there, the newest last."""
    return [event for event in story.saved if event.get(ON_THE_WAY) and Path(event["path"]).is_file()]


def is_passed(work: Work, images: int) -> bool:
    """Whether a run that went back has as many results of later moments as are to stay: one of this moment is there no
    longer, and would be the wrong one to keep. Those that were written with other settings do not count."""
    changes, kept = on_resume.of_the_result(work.job.changes()), work.settings.intervals.results_kept
    later = [event for event in _on_the_way(work.job.story()) if event["images"] > images]
    return 0 < kept <= sum(event.get("changes", {}) == changes for event in later)


def _remove(work: Work, event: Event) -> None:
    if not result_files.are_among_results(work.folders, work.project, event) or not result_files.is_unchanged(event):
        return
    try:
        if result_files.was_written_to(event) or result_files.has_notes(event):
            return
        if result_files.needed_by(work.folders, event):
            return
        result_files.take_away(event)
    except OSError:  # one that is in use stays
        return
    work.job.report("removed", path=event["path"])
