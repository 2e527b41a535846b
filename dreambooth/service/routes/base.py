"""What the routes of every kind share: the host that they ask, and how a request's body is read.

A parameter that is a dict is the request's JSON body, as FastAPI reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from dreambooth.core import project, schema, settings
from dreambooth.core.drawing import Drawing, Keep, Look
from dreambooth.core.errors import UserError
from dreambooth.core.job_folder import Job
from dreambooth.core.project import Folders, Project
from dreambooth.core.settings import Settings
from dreambooth.service import models, queue

_MOST_EVENT_BYTES = 4_000_000  # in one answer
_MOST_OFFSET = 1 << 40  # bytes; no job says so much, and far beyond no system finds a place in a file

Answer = dict[str, Any]
Route = tuple[str, str, Callable[..., Any]]


class Door(Protocol):
    """What the API needs of the host."""

    name: str
    version: str
    token: str
    captioners: tuple[str, ...]
    samplers: tuple[str, ...]

    @property
    def has_accounts(self) -> bool: ...

    def folders(self) -> Folders: ...
    def checkpoints(self) -> list[tuple[str, Path]]: ...
    def refresh(self) -> None: ...
    def describe(self, picture: Path, captioner: str) -> str: ...
    def draw(self, wanted: Drawing, look: Look, keep: Keep) -> None: ...
    def admits(self, headers: Mapping[str, str], cookies: Mapping[str, str]) -> bool: ...


class Routes:
    """Routes of one kind of thing. The folders are asked for anew each time: a flag or setting may have moved them."""

    def __init__(self, host: Door) -> None:
        self.host = host

    def table(self) -> list[Route]:
        """Method, path and what is done, in the order in which the documentation lists them."""
        raise NotImplementedError

    @property
    def folders(self) -> Folders:
        return self.host.folders()

    def open(self, name: str) -> Project:
        return project.open_project(self.folders, name)

    def asked(self, opened: Project, body: Answer) -> Settings:
        """A model's settings with those of a request over them."""
        return settings.parse(self.over(opened.settings(), body))

    def over(self, own: dict[str, Any], body: Answer) -> dict[str, Any]:
        """The same by dotted key, of the settings that are a model's own."""
        flat = models.changed(own, an_object(body, "settings"))
        project.check_places(flat, lambda: own)
        return schema.with_secrets(Settings, flat, own)

    def submit(self, job: Job, show: Callable[[Job], Answer]) -> Answer:
        """Puts a job into the queue; one that cannot be there leaves nothing behind."""
        queue.submit_new(job)
        return show(job)


def numbered(jobs: list[Job], number: int, what: str) -> Job:
    for job in jobs:
        if int(job.folder.name) == number:
            return job
    raise UserError(f"There is no {what} {number} here.")


def only(body: Answer, *known: str, needed: str = "") -> Answer:
    """The body, which has no field besides these. Raises UserError for another, or if `needed` is not there: what is
    passed over in silence is taken for done."""
    problems = [
        f"{key}: this request takes no such field (it takes {', '.join(known)})." for key in sorted(body.keys() - known)
    ]
    if needed and needed not in body:
        problems.append(f"{needed}: it is missing.")
    if problems:
        raise UserError(problems)
    return body


def text(body: Answer, key: str, *, optional: bool = False) -> str:
    value = body.get(key, "")
    if not isinstance(value, str) or "\x00" in value:
        raise UserError(f"{key}: it is not text.")
    if not value.strip() and not optional:
        raise UserError(f"{key}: it is missing.")
    return value


def a_switch(body: Answer, key: str) -> bool:
    """Raises UserError for what is neither true nor false; what is left out is false."""
    value = body.get(key, False)
    if not isinstance(value, bool):
        raise UserError(f"{key}: it must be true or false (it is {value!r}).")
    return value


def an_object(body: Answer, key: str) -> Answer:
    value = body.get(key) or {}
    if not isinstance(value, dict):
        raise UserError(f"{key}: it must be a JSON object.")
    return value


def events(job: Job, offset: int) -> Answer:
    """What happened since `offset`, the offset to ask with next, and how the job is."""
    if offset > _MOST_OFFSET:
        raise UserError(f"offset: {str(offset)[:40]} is beyond every job's events; take that of the last answer.")
    found, offset = job.events(max(0, offset), _MOST_EVENT_BYTES)
    return {"events": found, "offset": offset, "status": job.status()}
