"""A job that is being worked on. Light: it loads no torch, so that a check answers at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dreambooth.core import settings as settings_module
from dreambooth.core.job_folder import ENDINGS, Ending, Job
from dreambooth.core.project import Folders, Project, open_project
from dreambooth.core.settings import Settings
from dreambooth.engine.process.listener import ends_at_once


class Asked(Exception):
    """A person asked to end before training began."""

    def __init__(self, ending: Ending) -> None:
        self.ending = ending


@dataclass
class Work:
    """What a job says, and how it reports."""

    job: Job
    folders: Folders
    project: Project
    settings: Settings
    let_end: Callable[..., None] = lambda *requests: None  # which requests may end it wherever it is, as a listener has
    phase: str = ""  # what it is at, in the words of the last stage
    together: int = 0  # how many pictures are drawn at a time; 0 before any is

    @classmethod
    def open(cls, job: Job, let_end: Callable[..., None] | None = None) -> Work:
        folders = job.folders()
        project = open_project(folders, job.read()["model"])
        work = cls(job, folders, project, settings_module.parse(job.settings()))
        work.let_end = let_end or work.let_end
        return work

    @property
    def size(self) -> int:
        """The side of the training pictures, in pixels."""
        return self.settings.general.resolution or self.project.resolution

    def stage(self, name: str, done: int, total: int) -> None:
        """Reports how far a stage is, and ends the job if a person asked for it."""
        self.phase = name
        self.job.report("stage", name=name, done=done, total=total)
        self.stop_if_asked()

    def stop_if_asked(self) -> None:
        requests = self.job.requests()
        for request in ends_at_once(self.job) if requests else ():
            if request in requests:
                raise Asked(ENDINGS[request])
