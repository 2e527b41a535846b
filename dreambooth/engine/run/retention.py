"""Which of its own results a run removes again: a best one once a better one is written, and of those that it wrote at
intervals all but the newest.

Results that a person has asked for, has changed, has given a picture or notes in the WebUI, or that something else
needs are kept.
"""

from __future__ import annotations

from pathlib import Path

from dreambooth.core import result_files
from dreambooth.core.files import paths
from dreambooth.core.job_history import Event, JobHistory
from dreambooth.core.settings import Settings, on_resume
from dreambooth.engine.work import Work

BEST, ON_THE_WAY = "best", "on_the_way"  # in the event of a result: written only as the best, or only at an interval


def tidy(work: Work, images: int) -> None:
    """Removes results that need not be kept any more. `images` is how many the run has seen, and names its newest
    result.

    To be called once the newest result is written; what a kill leaves is removed by the next call.
    """
    story = work.job.story()
    for event in [*_former_bests(story), *_older(story, work.settings, images)]:
        _remove(work, event)


def _former_bests(story: JobHistory) -> list[Event]:
    """Results that were written only as the best, before the best one; none while that is not written."""
    if story.best is None or written_of_best(story) is None:
        return []
    return [event for event in story.saved if event.get(BEST) and event["images"] < story.best.images]


def written_of_best(story: JobHistory) -> Path | None:
    """The file of the best result; None where there is none."""
    written = (Path(event["path"]) for event in story.saved if story.best and event["images"] == story.best.images)
    return next((path for path in written if paths.is_file(path)), None)


def _older(story: JobHistory, settings: Settings, images: int) -> list[Event]:
    if not settings.intervals.results_kept:
        return []
    stay = {images}
    if settings.saving.keep_best and story.best and story.best.is_better:
        stay.add(story.best.images)
    older = _on_the_way(story)[: -settings.intervals.results_kept]
    return [event for event in older if event["images"] not in stay]


def _on_the_way(story: JobHistory) -> list[Event]:
    """The results that were written at intervals and are there, the newest last."""
    return [event for event in story.saved if event.get(ON_THE_WAY) and paths.is_file(Path(event["path"]))]


def is_passed(work: Work, images: int) -> bool:
    """Whether a run that went back to an earlier state has as many later results as are kept: one of this moment was
    removed before, and is not to be written again. Results that were written with other settings do not count."""
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
