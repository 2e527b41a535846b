"""How engines ended: what they said themselves, and where they said nothing, what can be known of the cause."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from dataclasses import replace
from typing import Any

from dreambooth.core import linux
from dreambooth.core.errors import RUN_SETUP, Problem, UserError
from dreambooth.core.files import atomic
from dreambooth.core.files.json_file import read_object
from dreambooth.core.job_folder import BY_WEBUI, Job

LOG_LINES, LOG_LENGTH = 8, 2000
# Exit codes of an engine that found another one on this job or on the device, or the job no longer in the queue; where
# it is asked for now, it was asked for anew.
WAITS_ON = (2, 3, 4)
_CRASHES = ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGFPE", "SIGILL", "SIGTRAP")


def note(job: Job, process: subprocess.Popen[bytes]) -> None:
    """Waits for an engine and writes down how its process ended, for whoever asks later."""
    code = process.wait()
    try:
        atomic.write_text(job.folder / "exit.json", json.dumps({"pid": process.pid, "code": code, "time": time.time()}))
        if not job.is_run and code not in WAITS_ON and job.story().ending is None:
            job.report("failed", **UserError(_ended(job, {})).as_json(), refused=False)
    except OSError:  # the folder is gone, as an errand's is, or the disk is full
        return


def failure(job: Job, event: dict[str, Any]) -> list[Problem]:
    """What an engine said of its own failure; with the log where it broke."""
    log = "" if event.get("refused") else log_excerpt(job)
    return [replace(one, log=log) for one in _problems_of(event)]


def _problems_of(event: dict[str, Any]) -> list[Problem]:
    """The event's problems; one of an earlier version has sentences alone."""
    try:
        if found := [Problem.read(one) for one in event.get("errors", [])]:
            return found
    except (ValueError, TypeError):
        pass
    problems = event.get("problems")
    sentences = [str(one) for one in problems] if isinstance(problems, list) and problems else ["The engine failed."]
    return [Problem.of(sentence) for sentence in sentences]


def loss(job: Job) -> Problem:
    """Why an engine that said nothing is gone, as far as can be known, and what to do."""
    if job.read()["kind"] in BY_WEBUI:
        return Problem("The WebUI was closed or started anew while it was at work.", "", "Start it again.")
    return _ended(job, job.story().last.get("started", {}))


def early(job: Job) -> Problem | None:
    """Why the engine that was started last is gone, where it ended before it said that it began; None where it did not.

    Its run is as the engine before it has left it, so nothing else tells of it.
    """
    try:
        content = read_object(job.folder / "exit.json")
    except UserError:
        return None
    started = job.story().last.get("started", {})
    began, at, code = started.get("time", 0), content.get("time"), content.get("code")
    if (
        not isinstance(code, int)
        or code in WAITS_ON
        or content.get("pid") in (started.get("pid"), started.get("parent"))
    ):
        return None
    is_last = all(isinstance(one, (int, float)) for one in (began, at)) and at > began
    return _ended(job, {}) if is_last else None


def _ended(job: Job, started: dict[str, Any]) -> Problem:
    cause, advice = _cause(job, started), _advice(job, job.story().last.get("state"))
    if not started and (_exit_code(job) or 0) > 0:  # it failed to load, rather than being ended from outside
        advice = RUN_SETUP
    return Problem(f"{cause}.", str(job.log), advice, log_excerpt(job))


def _cause(job: Job, started: dict[str, Any]) -> str:
    if not started:
        code = _exit_code(job)
        how = "" if code is None else f" (code {code})"
        return f"The engine ended before it began{how}; its log says why"
    if started.get("boot") and linux.boot() and started["boot"] != linux.boot():
        return "The computer was restarted, or lost its power, while the engine was at work"
    code, kills = _exit_code(job, started), started.get("memory_kills")
    ran_out = isinstance(kills, int) and linux.memory_kills() > kills
    if code is None:
        if ran_out:
            return "The computer's memory ran out, and the system has most likely ended the engine for it"
        return "The engine ended without a word, as it does when a person or the system ends it"
    if code >= 0:
        return f"The engine ended with the code {_code(code)} and said nothing"
    name = _signal(-code)
    if name == "SIGKILL" and ran_out:
        return "The computer's memory ran out, and the system ended the engine"
    if name in _CRASHES:
        return f"The engine crashed (signal {-code}, {name}); its log says where"
    return f"The engine was ended from outside (signal {-code}, {name})"


def _advice(job: Job, state: dict[str, Any] | None) -> str:
    if not job.is_run:
        return "Start it again."
    if state:
        return f"Resume goes on from its last state, at step {state['step']}."
    return "No state was saved yet; start it again."


def _exit_code(job: Job, started: dict[str, Any] | None = None) -> int | None:
    """How the process that said `started` ended, or whichever there was; None if nobody saw it.

    What is started in a virtual environment of Windows is a launcher: it starts Python, and ends with Python's code.
    """
    try:
        content = read_object(job.folder / "exit.json")
    except UserError:
        return None
    code = content.get("code")
    is_it = started is None or content.get("pid") in (started.get("pid"), started.get("parent"))
    return code if isinstance(code, int) and is_it else None


def _code(code: int) -> str:
    return f"0x{code:08X}" if code > 255 else str(code)  # Windows names its own in hexadecimal


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def log_excerpt(job: Job) -> str:
    """The last lines of the log."""
    try:
        with open(job.log, "rb") as file:
            file.seek(max(0, job.log.stat().st_size - 4 * LOG_LENGTH))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(text.strip().splitlines()[-LOG_LINES:])[-LOG_LENGTH:]
