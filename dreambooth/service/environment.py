"""The engine's own Python environment: made, checked and repaired here, never the WebUI's.

It lies in `.engine` inside the project's folder and goes with it. A stamp says that it is complete and
made from today's lock; comparing the stamp is all that happens on an ordinary start.
Works from a bare Python 3.10 to 3.13 with only the standard library.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic, lock, occupancy
from dreambooth.core.layout import DEVELOPMENT_LOCK, ENGINE, ENGINE_USERS, LOCK, PROJECT, SETTING_UP, STAMP
from dreambooth.service import torch_build

PIP = "pip==26.3"
VARIABLE = "DREAMBOOTH_ENGINE_PYTHON"

Progress = Callable[[str], None]


def python() -> Path:
    """The engine's Python: the one that DREAMBOOTH_ENGINE_PYTHON names, or our environment's."""
    named = os.environ.get(VARIABLE)
    if named:
        if not Path(named).is_file():
            raise UserError(f"{VARIABLE} names {named}, but there is no such file.")
        return Path(named)
    return python_in(ENGINE)


def is_current(*, development: bool = False) -> bool:
    """Whether the environment is complete and made from today's locks. No network, no subprocess."""
    if os.environ.get(VARIABLE):
        return True
    try:
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(
        stamp.get("engine") == digest(LOCK)
        and (not development or stamp.get("development") == digest(DEVELOPMENT_LOCK))
        and python().exists()
    )


def is_being_set_up() -> bool:
    return lock.is_held(SETTING_UP)


def lock_digest() -> str:
    """Which version of the engine's packages this version of the project wants."""
    return digest(LOCK)


def ensure(progress: Progress, *, development: bool = False) -> Path:
    """The engine's Python, set up first where needed. Raises UserError when that fails."""
    if not is_current(development=development):
        set_up(progress, development=development)
    return python()


def set_up(progress: Progress, *, development: bool = False) -> None:
    """Makes the environment or repairs it; running it again after a failure goes on where it stopped."""
    _check_host()
    with _only_one(progress):
        _wait_for_engines(progress)
        development = development or _stamp_has("development")
        atomic.remove(STAMP)
        machine = torch_build.look()
        if torch_build.note(machine):
            progress(torch_build.note(machine))
        make_venv(ENGINE, progress)
        for lock_file in [LOCK, DEVELOPMENT_LOCK] if development else [LOCK]:
            install_lock(ENGINE, lock_file, progress)
        _install_torch(machine, progress)
        progress("Checking that it works")
        report = check()
        stamp = {"engine": digest(LOCK), "made": time.time(), "report": report}
        if development:
            stamp["development"] = digest(DEVELOPMENT_LOCK)
        atomic.write_text(STAMP, json.dumps(stamp, indent=1))
        progress(f"Ready: PyTorch {report['torch']} on {report['device_name']}")


def was_made() -> bool:
    """Whether an environment has been set up to the end, from these locks or earlier ones."""
    return STAMP.exists()


def check() -> dict[str, Any]:
    """Runs the engine's self-check: its imports, a matrix product and a small UNet step on the device.

    Returns its report (python, package versions, device). Raises UserError if it fails.
    """
    command = [str(python()), "-m", "dreambooth.engine", "selfcheck"]
    try:
        result = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", cwd=PROJECT, env=engine_variables()
        )
    except OSError as error:
        raise UserError(f"{command[0]}: this is no Python that can be started ({error.strerror}).") from None
    try:
        return dict(json.loads(result.stdout.splitlines()[-1]))
    except (IndexError, ValueError):
        lines = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
        # A card's error goes on for some lines about how to look for it.
        reason = next((line for line in reversed(lines) if re.match(r"[\w.]+Error: ", line)), lines[-1])
        raise UserError(f"The engine's environment ({ENGINE}) does not work: {reason}. Run setup again.") from None


def engine_variables() -> dict[str, str]:
    """Environment variables for an engine process: ours on its path, the WebUI's left out, no hub."""
    dropped = ("COMMANDLINE_ARGS", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
    variables = {key: value for key, value in os.environ.items() if key not in dropped}
    variables.update(
        PYTHONPATH=str(PROJECT),
        PYTHONNOUSERSITE="1",
        PYTHONUTF8="1",
        HF_HUB_OFFLINE="1",
        TOKENIZERS_PARALLELISM="false",
        PYTORCH_ENABLE_MPS_FALLBACK="1",  # what PyTorch lacks on an Apple GPU is done by the CPU, not refused
        OMP_WAIT_POLICY=os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),  # spinning threads stall on a shared CPU
    )
    return variables


def _check_host() -> None:
    if not (3, 10) <= sys.version_info[:2] <= (3, 13):
        raise UserError(
            f"Python {sys.version_info[0]}.{sys.version_info[1]} cannot make the engine's environment; start this "
            f"with Python 3.10 to 3.13, or name another engine's Python in {VARIABLE}."
        )
    machine = torch_build.look()
    if reason := torch_build.missing(machine):
        raise UserError(f"{reason} {VARIABLE} can name another engine's Python.")
    free = shutil.disk_usage(PROJECT).free
    needed = 6 if machine.nvidia_driver else 2
    if not STAMP.exists() and not python().exists() and free < needed * 10**9:
        raise UserError(
            f"{PROJECT}: the engine's environment needs about {needed} GB of free disk (there: {free / 10**9:.1f} GB)."
        )


def _wait_for_engines(progress: Progress) -> None:
    """Packages are not changed under an engine that works with them; while the set-up's lock is held none starts."""
    while count := occupancy.users(ENGINE_USERS):
        progress(f"Waiting for {count} job{'s' * (count > 1)} to end; pause what is running to go on at once")
        time.sleep(1)


class _only_one:
    """Holds the set-up lock, so that two set-ups never write into one environment."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def __enter__(self) -> None:
        self.file = lock.acquire(SETTING_UP)
        if self.file is None:
            self.progress("Another set-up is running; waiting for it")
        while self.file is None:
            time.sleep(1)
            self.file = lock.acquire(SETTING_UP)

    def __exit__(self, *_: object) -> None:
        if self.file:
            self.file.close()


def python_in(folder: Path) -> Path:
    """The Python of the environment in a folder."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def make_venv(folder: Path, progress: Progress) -> None:
    """An environment with our pip in a folder; one that works is kept. Raises UserError if it cannot be made."""
    own = python_in(folder)
    if not own.exists() or subprocess.run([str(own), "-c", "import pip"], capture_output=True).returncode:
        _make_empty_venv(folder, progress)
    _pip(folder, ["install", PIP], progress, "pip")


def _make_empty_venv(folder: Path, progress: Progress) -> None:
    progress(f"Making a Python environment in {folder.name}")
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "venv", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if result.returncode:
        said = (result.stdout + result.stderr).strip()
        shutil.rmtree(folder, ignore_errors=True)
        if "ensurepip" in said:
            version = f"{sys.version_info[0]}.{sys.version_info[1]}"
            raise UserError(f"This Python has no venv module; install it first (Debian, Ubuntu: python{version}-venv).")
        raise UserError(f"{folder}: the environment cannot be made ({(said.splitlines() or ['no reason given'])[-1]}).")


def install_lock(folder: Path, lock_file: Path, progress: Progress) -> None:
    """The packages of a lock file, and no other, but PyTorch. Raises UserError if that fails."""
    wanted = [line for line in _requirements(lock_file) if not line.startswith("torch==")]
    _pip(folder, ["install", "--no-deps", "--no-warn-script-location", *wanted], progress, f"{len(wanted)} packages")


def _install_torch(machine: torch_build.Machine, progress: Progress) -> None:
    """Tries the builds in turn. Everything else is installed by now, so only PyTorch's own parts are fetched."""
    wanted = next(line for line in _requirements(LOCK) if line.startswith("torch=="))
    builds = torch_build.builds(machine)
    for build in builds:
        try:
            _pip(ENGINE, ["install", *build.arguments, "--retries", "2", wanted], progress, f"PyTorch ({build.name})")
            return
        except UserError as error:
            if build is builds[-1]:
                raise
            progress(f"{build.name}: {error}. Trying the next")


def _pip(folder: Path, arguments: list[str], progress: Progress, what: str) -> None:
    progress(f"Installing {what}")
    command = [str(python_in(folder)), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    if PIP not in arguments:
        command += ["--progress-bar", "raw"]
    environment = {**os.environ, "PYTHONNOUSERSITE": "1"}
    environment.pop("PYTHONPATH", None)
    said: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, errors="replace"
    ) as process:
        try:
            for line in process.stdout or ():
                said.append(line.strip())
                if shown := _pip_progress(line, what):
                    progress(shown)
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        reasons = [line for line in said if line.startswith("ERROR")] or said[-1:] or ["no reason given"]
        raise UserError(
            f"{what} could not be installed: {reasons[-1].removeprefix('ERROR: ')} Run setup again to go on."
        )


def _pip_progress(line: str, what: str) -> str:
    words = line.split()
    if line.startswith("Progress ") and len(words) == 4 and int(words[3]) > 20_000_000:
        return f"{what}: {int(words[1]) / 1e6:,.0f} of {int(words[3]) / 1e6:,.0f} MB"
    if words[:1] == ["Collecting"]:
        return f"{what}: {words[1].replace('==', ' ')}"
    if line.startswith("Installing collected"):
        return f"{what}: unpacking"
    return ""


def _requirements(lock_file: Path) -> Iterator[str]:
    for line in lock_file.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            yield line.strip()


def digest(lock_file: Path) -> str:
    return hashlib.sha256(lock_file.read_bytes()).hexdigest()


def _stamp_has(key: str) -> bool:
    try:
        return key in json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
