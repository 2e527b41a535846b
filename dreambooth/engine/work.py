"""A job that is being worked on. Light: it loads no torch, so that a check answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.core import settings as settings_module
from dreambooth.core.project import Folders, Project, open_project
from dreambooth.core.run import Job
from dreambooth.core.settings import Settings

if TYPE_CHECKING:
    from dreambooth.engine.training.loop import Ending


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

    @classmethod
    def open(cls, job: Job) -> Work:
        folders = Folders(Path(job.read()["models"]))
        return cls(job, folders, open_project(folders, job.read()["model"]), settings_module.parse(job.settings()))

    @property
    def size(self) -> int:
        """The side of the training pictures, in pixels."""
        return self.settings.general.resolution or self.project.resolution

    def stage(self, name: str, done: int, total: int) -> None:
        """Reports how far a stage is, and ends the job if a person asked for it."""
        self.job.report("stage", name=name, done=done, total=total)
        self.stop_if_asked()

    def stop_if_asked(self) -> None:
        endings: dict[str, Ending] = {"pause": "paused", "stop": "stopped", "discard": "discarded"}
        for request, ending in endings.items():
            if request in self.job.requests():
                self.job.clear_request(request)
                raise Asked(ending)
