"""A job's folder: how the two processes speak.

    job.json       what to do (written before the engine starts; again only where the job lies elsewhere by then)
    settings.json  the settings, frozen
    changes.json   what of them the engine has changed since, as dotted keys
    events.jsonl   what happened, one JSON object a line (only the engine writes)
    requests/      what a person asks for: a file named pause, stop, discard, save or preview; start asks the queue to
                   start the engine as soon as no other is at work, and who removes that file decides: an engine
                   that takes it begins, and where a person was faster, the engine leaves again
    alive          locked by the engine as long as it lives
    waiter         locked by the command that waits for the run's turn, as long as it waits
    watched        touched now and then by whoever looks after the run
    exit.json      how the engine's process ended, where somebody was there to see it
    state/  previews/  log.txt

A training run is a job that can be resumed: starting the engine on the same folder again goes on
from the last state.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from dreambooth.core import job_history
from dreambooth.core.errors import Problem, UserError
from dreambooth.core.files import atomic, lock
from dreambooth.core.files.json_file import read_object
from dreambooth.core.job_history import JobHistory
from dreambooth.core.model_record import is_absolute_path
from dreambooth.core.project import Folders
from dreambooth.core.settings import carried_over, write_json

Request = Literal["start", "pause", "stop", "discard", "save", "preview"]
REQUESTS = ("discard", "save", "stop", "pause", "preview")  # the engine's, in the order in which it answers them
Ending = Literal["done", "paused", "stopped", "discarded"]  # of a job that did not fail
ENDINGS: dict[str, Ending] = {"pause": "paused", "stop": "stopped", "discard": "discarded"}  # by the request for it
# Jobs that need the device to themselves:
DEVICE_KINDS = ("train", "class-images", "generate", "tokens", "caption", "measure")
TXT2IMG, DESCRIBE = BY_WEBUI = ("txt2img", "describe")  # kinds of jobs that the WebUI itself works on
# What going on with a run needs beside its states, in its folder:
BEFORE = "before.safetensors"  # what was measured before its first step
FITTED = "words.pt"  # the words of Imagic as far as they are fitted
Status = Literal["new", "queued", "running", "paused", "stopped", "done", "failed", "lost"]

# Windows appends in two moves, to the end and then on, between which another thread's line would be written over:
_reporting = threading.Lock()
_DISK_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


@dataclass(frozen=True)
class Job:
    """A job's folder; all that is known of the job is what the folder says."""

    folder: Path

    @property
    def name(self) -> str:
        """NAME/3 for the third run of the model NAME."""
        return f"{self.folder.parent.parent.name}/{int(self.folder.name)}"

    @property
    def title(self) -> str:
        """What people call it: NAME/3 for a run, NAME's generate for an errand, which has numbers of its own."""
        if self.is_run:
            return self.name
        try:
            content = self.read()
        except UserError:
            content = {"kind": "errand"}
        if content["kind"] == "download":
            return f"the download of {content.get('repository', 'a model')}"
        return f"{self.folder.parent.parent.name}'s {content['kind']}"

    @property
    def subject(self) -> str:
        """The same where a sentence begins with it."""
        return f"The run {self.name}" if self.is_run else f"{self.title[0].upper()}{self.title[1:]}"

    @property
    def is_run(self) -> bool:
        """Whether it is a training run; else it is an errand, which nobody resumes."""
        return self.folder.parent.name == "runs"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def previews(self) -> Path:
        return self.folder / "previews"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    def read(self) -> dict[str, Any]:
        """What to do, from job.json. Raises UserError if that is gone or damaged."""
        job = read_object(self.folder / "job.json")
        if not isinstance(job.get("kind"), str):
            raise UserError(f"{self.folder / 'job.json'}: the file is damaged; start a new run.")
        return job

    def read_or_empty(self) -> dict[str, Any]:
        """The same; empty where the file is gone or damaged."""
        try:
            return self.read()
        except UserError:
            return {}

    def folders(self) -> Folders:
        """The folders that it works in, as job.json says. Raises UserError as `read` does."""
        content = self.read()
        models = content.get("models")
        return Folders(Path(models) if is_absolute_path(models) else self.folder.parents[3], content.get("folders"))

    def come_to(self, folders: Folders) -> None:
        """Has job.json name the models folder and the model that it lies in by now: a WebUI may have been moved or
        copied, or a model's folder renamed by hand. Raises UserError as `read` does, and OSError."""
        content = self.read()
        updated = {
            **content,
            **where(folders),
            **({"model": self.folder.parents[1].name} if "model" in content else {}),
        }
        if updated != content:
            atomic.write_text(self.folder / "job.json", json.dumps(updated, indent=1))

    def settings(self) -> dict[str, Any]:
        """The frozen settings as dotted keys, with what has been changed since. Raises UserError if they are gone or
        damaged."""
        return carried_over({**read_object(self.folder / "settings.json"), **self.changes()})

    def changes(self) -> dict[str, Any]:
        """What has been changed of the settings since the run began, as dotted keys. Raises UserError if damaged."""
        path = self.folder / "changes.json"
        return read_object(path) if path.exists() else {}

    def change(self, flat: dict[str, Any]) -> None:
        """Changes settings from now on. Raises UserError where that cannot be written down."""
        path = self.folder / "changes.json"
        try:
            write_json(path, json.dumps({**self.changes(), **flat}, indent=1))
        except OSError as error:
            raise UserError(
                f"{path}: what changes of the run's settings cannot be written ({error.strerror}); mend that and "
                "resume the run."
            ) from None

    @property
    def needs_device(self) -> bool:
        return self.read_or_empty().get("kind") in DEVICE_KINDS

    def hold(self) -> IO[bytes] | None:
        """Marks the job as alive for as long as the returned file is open; None if it is already."""
        return lock.acquire(self.folder / "alive", seconds=1)

    def is_alive(self) -> bool:
        return lock.is_held(self.folder / "alive")

    def states(self) -> list[int]:
        """The steps after which a state was saved that is still there, the earliest first."""
        found = self.state.iterdir() if self.state.is_dir() else ()
        return sorted(int(path.name) for path in found if path.name.isdecimal())

    def forget_states(self) -> None:
        """Removes what only going on would need, as far as that can be removed."""
        atomic.remove_folder(self.state)
        for name in (BEFORE, FITTED):
            with contextlib.suppress(OSError):
                atomic.remove(self.folder / name)

    def report(self, event: str, **fields: Any) -> None:
        """Appends one event. Only who works on the job calls this, or has written or deleted a file of it. On a full
        disk what does not fit is left out."""
        line = json.dumps({"event": event, "time": round(time.time(), 3), **fields}, ensure_ascii=False)
        # A file's name need not be Unicode; what is not is written as JSON escapes it.
        data = f"{line}\n".encode(errors="backslashreplace")
        try:
            with _reporting, open(self.folder / "events.jsonl", "ab+", buffering=0) as file:
                if file.tell() and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n":
                    data = b"\n" + data  # a kill or a full disk has cut the last line short
                file.write(data)
        except OSError as error:
            if error.errno not in _DISK_FULL:
                raise

    def warn(self, warning: str | Problem) -> None:
        """Reports something that does not end the job, in the form that failures have; `text` is all of it."""
        problem = Problem.of(warning) if isinstance(warning, str) else warning
        self.report("warning", text=problem.sentence, **problem.as_json())

    def warnings(self) -> list[str]:
        """What it was warned of, the earliest first."""
        return [event["text"] for event in self.events()[0] if event["event"] == "warning"]

    def events(self, offset: int = 0, most_bytes: int = -1) -> tuple[list[dict[str, Any]], int]:
        """The events after byte `offset`, and the offset for the next call. A half-written line is left for it, and so
        is what goes beyond about `most_bytes`: a run of some days tells gigabytes as Python holds them."""
        try:
            with open(self.folder / "events.jsonl", "rb") as file:
                file.seek(offset)
                data = file.read(most_bytes) + (b"" if most_bytes < 0 else file.readline())
        except FileNotFoundError:
            return [], offset
        whole = data[: data.rfind(b"\n") + 1]
        return [event for line in whole.splitlines() if (event := event_of(line))], offset + len(whole)

    def request(self, what: Request, note: str = "") -> None:
        """Asks the engine for something; it answers with an event."""
        folder = self.folder / "requests"
        folder.mkdir(exist_ok=True)
        (folder / what).write_text(note, encoding="utf-8")

    def requests(self) -> set[str]:
        """What the engine is asked for. Other files that may lie there, such as a file manager's, ask for nothing."""
        try:
            return set(os.listdir(self.folder / "requests")) & set(REQUESTS)
        except (FileNotFoundError, NotADirectoryError):
            return set()

    @property
    def waits(self) -> bool:
        """Whether the queue is asked to start it."""
        return (self.folder / "requests" / "start").exists()

    def clear_request(self, what: str) -> bool:
        """Returns whether it was still asked for: of several who clear it at once, one alone is told so."""
        return atomic.remove(self.folder / "requests" / what)

    def leave_queue(self) -> bool:
        """Takes the job out of the queue: a run rests as before, an errand has ended. Returns whether it waited there,
        and no engine has begun."""
        waited = self.clear_request("start")
        if waited and not self.is_run:
            self.report("stopped")  # no engine will say it
        return waited

    def status(self) -> Status:
        """What the folder says now; `lost` is an engine that ended without a word."""
        if self.is_alive():
            return "running"
        if self.waits:
            return "queued"
        return self.story().status

    def watch(self) -> None:
        """Says that somebody looks after the run."""
        (self.folder / "watched").touch()

    def progress(self) -> dict[str, Any]:
        """The fields of the last step that was reported; empty before the first."""
        return self.story().step

    def story(self) -> JobHistory:
        """What the events come to."""
        return job_history.read(self.folder / "events.jsonl")


def event_of(line: bytes) -> dict[str, Any] | None:
    """The event in a line of events.jsonl; None for one that a crash cut short, followed by a later run's."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def where(folders: Folders) -> dict[str, Any]:
    """What job.json says of the place that a job works in."""
    return {"models": str(folders.models), "folders": folders.places}
