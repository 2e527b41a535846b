"""Setting the engine up where nobody looks at a terminal: in the background, with a note that the tab shows.

install.py calls `on_start` at each start of the WebUI, and `python -m dreambooth ui` calls `on_own_page`. When the
environment is current that is a comparison of two short files. When it is not, a process of its own is started, by
install.py once for each version of the lock file; the WebUI does not wait for it. After a failure the note says why,
and a person starts the next try.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic
from dreambooth.core.install_paths import PROJECT
from dreambooth.service import environment, self_check
from dreambooth.service.packages import Progress

NOTE = PROJECT / ".engine.note.json"
LOG = PROJECT / ".engine.log"
SIZE = "about 1.5 GB to fetch without a GPU, 6 GB with one"
_WRITE_EVERY_SECONDS = 0.5
# `python -m dreambooth setup`, for a portable Python too, which finds no module where it stands.
_SET_UP = (
    "import runpy, sys; sys.path.insert(0, sys.argv[1]); sys.argv[1:] = ['setup']; "
    "runpy.run_module('dreambooth', run_name='__main__', alter_sys=True)"
)
_STARTING, _STARTING_SECONDS = "Starting", 15  # what Python may take until it says something itself


def state() -> dict[str, Any]:
    """What the tab shows of the engine: is it ready, is it being set up, what was said last, what went wrong."""
    note = _read_note()
    ready = environment.is_current()
    working = environment.is_being_set_up() or _begins(note)
    problem = "" if ready or working else _problem(note)
    return {
        "ready": ready,
        "working": working,
        "said": note.get("said", "") if working else "",
        "problem": problem,
        "note": environment.note() if ready else "",
        "log": str(LOG),
    }


def _problem(note: dict[str, Any]) -> str:
    """Why the engine is not ready, and what to do."""
    try:
        environment.python()
    except UserError as error:  # DREAMBOOTH_ENGINE_PYTHON names nothing
        return str(error)
    if problem := note.get("problem"):
        return str(problem)
    if environment.has_todays_packages():
        return "The Python that the engine's environment was made with is gone, or was moved; set up again."
    if environment.was_made():
        return "The extension was updated, and the engine's packages were not yet; set up again."
    if note:
        return "Setting the engine up ended before it was done; set up again to go on where it stopped."
    return f"The engine is not set up yet ({SIZE})."


def on_start() -> str:
    """What install.py does. Returns a line for the console; empty where all is well. Raises nothing."""
    try:
        if environment.is_current():
            return ""
        note = _read_note()
        if environment.is_being_set_up() or _begins(note):
            return "Dreambooth: the engine is being set up; the Dreambooth tab shows how far."
        if note.get("lock") == environment.lock_digest() or os.environ.get(environment.VARIABLE):
            return f"Dreambooth: the engine is not ready. {_problem(note)} See the Dreambooth tab."
        begin()
        return "Dreambooth: the engine is being set up in the background; the Dreambooth tab shows how far."
    except UserError as error:
        return f"Dreambooth: the engine could not be set up. {error}"
    except Exception as error:  # noqa: BLE001  (the WebUI must start whatever is wrong here)
        return f"Dreambooth: the engine could not be set up ({type(error).__name__}: {error})."


def on_own_page() -> str:
    """What `python -m dreambooth ui` does about the engine: where it is not there, or not current, its set-up begins in
    the background, or is tried again. Returns a line for the terminal; empty where all is well."""
    if environment.is_current():
        return ""
    if state()["working"]:
        return "The engine is being set up already; the page shows how far."
    if os.environ.get(environment.VARIABLE):
        return f"The engine is not ready. {_problem({})}"
    begin()
    return (
        f"The engine is being set up in the background ({SIZE}); the page shows how far. It goes on when the page is "
        f"ended; what it says is in {LOG}."
    )


def begin() -> None:
    """Starts `python -m dreambooth setup` as a process of its own. Raises UserError if one is at work already, or this
    folder cannot be written to."""
    if environment.is_being_set_up() or _says(_read_note(), _STARTING, _STARTING_SECONDS):
        raise UserError("The engine is being set up already.")
    try:
        _write_note({"lock": environment.lock_digest(), "said": _STARTING, "time": time.time()})
        with open(LOG, "wb") as log:
            _start(log)
    except OSError as error:
        problem = _reason_of(error)
        _keep_note({"lock": environment.lock_digest(), "problem": str(problem)})  # nothing starts any more
        raise problem from None


def _start(log: BinaryIO) -> None:
    flags: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        flags = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    subprocess.Popen(
        [sys.executable, "-c", _SET_UP, str(PROJECT)],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        cwd=PROJECT,
        env=environment.engine_variables(),
        **flags,
    )


def set_up(progress: Progress, *, development: bool = False) -> dict[str, Any]:
    """Makes the environment, or repairs it where it does not work, and keeps the tab's note of how far it is. Returns
    the check's report. Raises UserError when that fails."""
    note: dict[str, Any] = {"lock": environment.lock_digest(), "time": time.time()}
    written = 0.0

    def say(text: str) -> None:
        nonlocal written
        progress(text)
        if time.monotonic() - written > _WRITE_EVERY_SECONDS:
            written = time.monotonic()
            _keep_note({**note, "said": text})

    try:
        report = _of_one_that_works(say, development=development) or environment.set_up(say, development=development)
    except UserError as error:
        _keep_note({**note, "problem": str(error)})
        raise
    except OSError as error:
        problem = _reason_of(error)
        _keep_note({**note, "problem": str(problem)})
        raise problem from None
    atomic.remove(NOTE)
    return report


def _of_one_that_works(say: Progress, *, development: bool) -> dict[str, Any] | None:
    """The check's report where there is nothing to do."""
    if environment.is_current(development=development) and environment.is_for_this_machine():
        say(environment.CHECKING)
        with contextlib.suppress(UserError):  # what does not work is repaired
            return environment.check()
    return None


def _reason_of(error: OSError) -> UserError:
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return UserError(f"{PROJECT}: the disk is full; make room, and run setup again to go on.")
    return UserError(f"The engine cannot be set up ({error}). Run setup again to go on.")


def _begins(note: dict[str, Any]) -> bool:
    """Whether the process that sets up has just been started, or looks whether there is anything to do: it holds no
    lock yet."""
    looks = environment.is_current() and _says(note, environment.CHECKING, self_check.SECONDS)
    return looks or _says(note, _STARTING, _STARTING_SECONDS)


def _says(note: dict[str, Any], words: str, seconds: float) -> bool:
    """Whether a set-up of today's packages, begun no longer ago than that, has said these words last."""
    since, is_ours = note.get("time"), note.get("lock") == environment.lock_digest()
    is_young = isinstance(since, float) and 0 <= time.time() - since < seconds
    return is_ours and is_young and note.get("said") == words


def _read_note() -> dict[str, Any]:
    try:
        return dict(json.loads(atomic.read(NOTE)))
    except (OSError, ValueError, TypeError):
        return {}


def _write_note(note: dict[str, Any]) -> None:
    atomic.write_text(NOTE, json.dumps(note))


def _keep_note(note: dict[str, Any]) -> None:
    """What the set-up does not end for when the disk is full: the set-up itself, or its own reason, tells of that."""
    with contextlib.suppress(OSError):
        _write_note(note)


def engine_log(most: int = 20_000) -> str:
    """The end of what the last set-up in the background said."""
    return tail(LOG, most)


def tail(path: Path, most: int) -> str:
    """The last `most` bytes of a file as text; empty if there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - most))
            return file.read(most).decode("utf-8", errors="replace")
    except OSError:
        return ""
