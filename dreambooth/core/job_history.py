"""What a job's events come to. The page looks every second at runs that may last for days, so a look reads only what
was added since the last one, and what is kept stays small however long the job.

Of a long file that is read for the first time only some steps are read, evenly spread; all other events are.
"""

from __future__ import annotations

import json
import random
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from dreambooth.core import validation
from dreambooth.core.errors import Problem
from dreambooth.core.validation import Measure

Event = dict[str, Any]
LastEvent = Literal["paused", "stopped", "done", "failed"]  # what a job ends with; stopped, too, if discarded

_LAST_EVENTS: dict[str, LastEvent] = {"paused": "paused", "stopped": "stopped", "done": "done", "failed": "failed"}

_LASTING = ("started", "state", "result")  # an engine's start, a saved state, and that only tidying is left

_NUMBER = (int, float)
_HOLDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "step": {
        "step": int,
        "steps": int,
        "loss": _NUMBER,
        "rate": _NUMBER,
        "steps_per_second": _NUMBER,
        "seconds_left": _NUMBER,
    },
    "stage": {"name": str, "done": _NUMBER, "total": _NUMBER},
    "resumed": {"step": int},
    "state": {"step": int},
    "preview": {"images": int, "paths": list},
    "saved": {"kind": str, "path": str, "bytes": int, "images": int},
    "removed": {"path": str},
    "measured": {"step": int, "images": int, "held_out": _NUMBER, "learned": _NUMBER},
    "exported": {"kind": str, "path": str, "bytes": int, "images": int, "step": int},
    "picture": {"path": str},
    "warning": {"text": str},
}
_MAY_HOLD: dict[str, dict[str, type | tuple[type, ...]]] = {
    "step": {"memory_bytes": int},
    "preview": {"prompts": list},
    "saved": {"embeddings": dict, "step": int},
    "exported": {"embeddings": dict},
}

_STEP = b'{"event": "step"'  # how Job.report begins the line of a step
_CHUNK_BYTES = 1 << 20
_READ_IN_FULL_BYTES = 4_000_000
_MOST_POINTS = 400
_MOST_MOMENTS = 100
_MOST_MEASURES = 10_000
_MOST_WARNINGS = 50
_MOST_PICTURES = 1000  # as many as can be drawn at once
_MOST_HISTORIES = 1000  # of some 100 kB each, where the runs were long
_HEAD_BYTES = 120  # the first event's time is in them, so no two files begin alike


class Point(NamedTuple):
    """Some steps of a run: the last of them, and the means of what was told of them."""

    step: int
    loss: float
    subject_loss: float
    prior_loss: float  # of the class; 0 where it is not kept
    rate: float


@dataclass
class Course:
    """Losses and rate over the steps: at most so many points, each the mean of as many steps."""

    points: list[Point] = field(default_factory=list)
    _each: int = 1  # reported steps in a point
    _open: list[Point] = field(default_factory=list)
    _last: int = 0

    def add(self, point: Point) -> None:
        if point.step <= self._last:  # a run that began anew, as it had no state yet, tells of no resuming
            self.cut(point.step - 1)
        self._last = point.step
        self._open.append(point)
        if len(self._open) < self._each:
            return
        self.points.append(_mean(self._open))
        self._open = []
        if len(self.points) >= _MOST_POINTS:
            self.points = [_mean(self.points[at : at + 2]) for at in range(0, len(self.points), 2)]
            self._each *= 2

    def cut(self, step: int) -> None:
        """Forgets what came after a step, from where a run was resumed."""
        self.points = [point for point in self.points if point.step <= step]
        self._open = []


def _is_whole(kind: str, event: Event) -> bool:
    """Whether an event holds what its kind says; one of a damaged file may hold anything."""
    may = {key: types for key, types in _MAY_HOLD.get(kind, {}).items() if key in event}
    wanted = {**_HOLDS.get(kind, {}), **may}
    if not all(isinstance(event.get(key), types) and not isinstance(event[key], bool) for key, types in wanted.items()):
        return False
    if kind == "step" and event["steps"] < 1:
        return False
    paths = [event.get("path", ""), *(event["paths"] if "paths" in wanted else ())]
    paths += event["embeddings"].values() if "embeddings" in wanted else ()
    return all(isinstance(path, str) and "\x00" not in path for path in paths)


def _warning(event: Event) -> Problem:
    """What a warning says; one of an earlier version has a sentence alone."""
    try:
        return Problem.read(event)
    except ValueError:
        return Problem.of(event["text"])


def _measure(event: Event) -> Measure:
    drift = event.get("drift")
    drifted = float(drift) if isinstance(drift, _NUMBER) and not isinstance(drift, bool) else None
    return Measure(event["step"], event["images"], float(event["held_out"]), float(event["learned"]), drifted)


def _mean(points: list[Point]) -> Point:
    return Point(points[-1].step, *(sum(values) / len(points) for values in list(zip(*points))[1:]))


def _point(event: Event) -> Point:
    """A step as it is drawn; one of an earlier version tells of the whole loss alone."""
    loss, rate = float(event["loss"]), float(event["rate"])
    subject, prior = event.get("subject_loss", loss), event.get("prior_loss", 0)
    return Point(event["step"], loss, float(subject), float(prior), rate)


@dataclass
class JobHistory:
    """A job as its events tell it."""

    # Of an engine that is not alive: lost where it ended without a word.
    status: Literal["new", "lost"] | LastEvent = "new"
    ending: Event | None = None  # the last one, or the start of the engine that is at work
    last: dict[str, Event] = field(default_factory=dict)  # of each kind in _LASTING
    stage: Event | None = None  # of the engine that was started last; None while it trains
    step: Event = field(default_factory=dict)
    course: Course = field(default_factory=Course)
    previews: dict[int, list[str]] = field(default_factory=dict)  # paths by images seen
    prompts: list[str] = field(default_factory=list)  # of the previews, by the number in their names
    saved: list[Event] = field(default_factory=list)
    exported: list[Event] = field(default_factory=list)  # what was written of its states
    measures: list[Measure] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    offset: int = 0
    _head: bytes = b""

    @property
    def reached(self) -> int:
        """The last step that was told of, or that is in the state that was saved then: not every step is told of."""
        told: int = self.step.get("step", 0)
        saved: int = self.last.get("state", {}).get("step", 0)
        return max(told, min(saved, int(self.step.get("steps", 0))))

    @property
    def best(self) -> Measure | None:
        """When it was best, as far as pictures that it does not learn can tell."""
        return validation.best(self.measures)

    def catch_up(self, file: IO[bytes], size: int) -> None:
        """Reads what was added. A half-written line is left for the next time."""
        every = max(1, (size - self.offset) // _READ_IN_FULL_BYTES)
        self._head = self._head or file.read(_HEAD_BYTES)
        file.seek(self.offset)
        rest, number, step = b"", 0, b""
        while chunk := file.read(_CHUNK_BYTES):
            lines = (rest + chunk).split(b"\n")
            rest = lines.pop()
            for line in lines:
                self.offset += len(line) + 1
                if line.startswith(_STEP):
                    step, number = line, number + 1
                    if number % every:
                        continue
                    step = b""
                elif step:  # what happens then is told beside the step that it happened at
                    self._apply_line(step)
                    step = b""
                self._apply_line(line)
        if step:
            self._apply_line(step)

    def is_of(self, head: bytes, size: int) -> bool:
        """Whether this was read from a file that begins so; not if the job was made anew under the same number."""
        return size >= self.offset and head[: len(self._head)] == self._head

    def _apply_line(self, line: bytes) -> None:
        try:
            event = dict(json.loads(line))
            self._apply(event["event"], event)
        except (
            ValueError,
            KeyError,
            TypeError,
            OverflowError,
            RecursionError,
        ):  # a line that a crash cut short, followed by a later run's
            return

    def _apply(self, kind: str, event: Event) -> None:
        if not _is_whole(kind, event):
            return
        if kind in _LASTING:
            self.last[kind] = event
        if kind == "step":
            point = _point(event)
            self.step, self.stage = event, None
            self.course.add(point)
        elif kind == "stage":
            self.stage = event
        elif kind == "started":
            self.status, self.ending = "lost", event
            self.stage = {"event": "stage", "name": "starting", "done": 0, "total": 1}
        elif ending := _LAST_EVENTS.get(kind):
            self.status, self.ending = ending, event
            if ending in ("done", "stopped"):  # nothing is left to do; a run that goes on nevertheless writes another
                self.last.pop("result", None)
        elif kind == "resumed":
            self.course.cut(event["step"])
            self.measures = [one for one in self.measures if one.step <= event["step"]]
        elif kind == "preview":
            self._add_previews(event)
        elif kind in ("saved", "exported", "removed"):
            self._add_file(kind, event)
        elif kind == "measured" and len(self.measures) < _MOST_MEASURES:
            earlier = [one for one in self.measures if one.step < event["step"]]
            self.measures = [*earlier, _measure(event)]
        elif kind == "picture":
            self.pictures = [*self.pictures, event["path"]][-_MOST_PICTURES:]
        elif kind == "warning":
            warning = _warning(event)
            if warning not in self.warnings:
                self.warnings = [*self.warnings, warning][-_MOST_WARNINGS:]

    def _add_previews(self, event: Event) -> None:
        self.previews[event["images"]] = event["paths"]
        self.prompts = [str(prompt) for prompt in event.get("prompts") or []]
        if len(self.previews) > _MOST_MOMENTS:
            moments = sorted(self.previews)
            for images in moments[1:-1:2]:
                del self.previews[images]

    def _add_file(self, kind: str, event: Event) -> None:
        """None is ever written over another: one of the same name that was told of before is gone."""
        self.saved, self.exported = (
            [one for one in some if one["path"] != event["path"]] for some in (self.saved, self.exported)
        )
        if kind != "removed":
            (self.saved if kind == "saved" else self.exported).append(event)


_histories: dict[Path, JobHistory] = {}
_lock = threading.Lock()


def read(path: Path) -> JobHistory:
    """The history in an events file, which may not be there yet. What was read before is kept for the next look."""
    with _lock:
        try:
            with open(path, "rb") as file:
                size = file.seek(0, 2)
                file.seek(0)
                head = file.read(_HEAD_BYTES)
                file.seek(0)
                known = _histories.pop(path, None)
                found = known if known and known.is_of(head, size) else JobHistory()
                found.catch_up(file, size)
        except FileNotFoundError:
            return JobHistory()
        if len(_histories) >= _MOST_HISTORIES:
            # Any of them: all jobs are looked at in turn, so the one that was not looked at for longest comes next.
            del _histories[random.choice(list(_histories))]
        _histories[path] = found
        return found
