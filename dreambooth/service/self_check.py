"""The engine's self-check, run in its own Python: whether the environment works, and whether the card is what fails."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from pathlib import Path
from typing import Any

from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import PROJECT

SECONDS = 600  # the first imports from an old disk, with a virus scanner that reads along, take minutes
_OF_THE_CARD = re.compile(r"\b(CUDA|HIP|NVIDIA|MPS)\b|AcceleratorError|[Dd]river|out of memory")
# Too little of the computer's memory, for libraries too; 1455 is how Windows says it, whatever its language.
_OF_MEMORY = re.compile(r"\bMemoryError\b|\b(WinError|os error) 1455\b|not enough memory|[Cc]an(no|')t allocate memory")
# How Windows says that a library lacks another, in any language. What packages need beside themselves is Microsoft's
# newest runtime; a WebUI with an older PyTorch does with an older one.
_OF_RUNTIME = re.compile(r"\bWinError (126|127|1114)\b|DLL load failed")
_RUNTIME = "https://aka.ms/vs/17/release/vc_redist.x64.exe"
SET_UP_AGAIN = "Run setup again (on the page: Set Up)."


class DoesNotWork(UserError):
    """The engine's environment failed its check."""


class CardFails(DoesNotWork):
    """The check failed in a way that new packages would not mend: the device, its driver, or too little memory."""


def run(python: Path, variables: dict[str, str], mend: str) -> dict[str, Any]:
    """The check's report (python, package versions, device), by the engine's Python with these environment variables.

    Raises DoesNotWork if it fails or has not ended after `SECONDS`; `mend` says what to do where that is not known
    better.
    """
    try:
        out, errors, code = _output_of([str(python), "-m", "dreambooth.engine", "selfcheck"], variables)
    except OSError as error:
        raise DoesNotWork(f"{python}: this is no Python that can be started ({error.strerror}). {mend}") from None
    try:
        return dict(json.loads(out.splitlines()[-1]))
    except (IndexError, ValueError):
        lines = errors.strip().splitlines() or [f"exit code {code}"]
        # A card's error goes on for some lines about how to look for it.
        reason = next((line for line in reversed(lines) if re.match(r"[\w.]+Error: ", line)), lines[-1])
        raise _failure(python, reason.rstrip(". "), mend) from None


def _failure(python: Path, reason: str, mend: str) -> DoesNotWork:
    message = f"The engine's Python ({python}) does not work: {reason}."
    if _OF_MEMORY.search(reason):
        do = "There is too little memory: close other programs, or let Windows have a larger paging file."
        return CardFails(f"{message} {do} {SET_UP_AGAIN}")
    if _OF_RUNTIME.search(reason):
        do = f"Install Microsoft's newest Visual C++ Redistributable ({_RUNTIME})."
        return DoesNotWork(f"{message} {do} {SET_UP_AGAIN}")
    kind = CardFails if _OF_THE_CARD.search(reason) else DoesNotWork
    return kind(f"{message} {mend}")


def _output_of(command: list[str], variables: dict[str, str]) -> tuple[str, str, int]:
    """What the self-check wrote, what it complained of, and its exit code. Raises OSError if it cannot be started."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        cwd=PROJECT,
        env=variables,
    )
    try:
        return (*process.communicate(timeout=SECONDS), process.returncode)
    except subprocess.TimeoutExpired:
        raise CardFails(
            f"The engine's self-check has not ended in {SECONDS // 60} minutes: the card's driver most likely "
            "does not answer; restart the computer, then run setup again (on the page: Set Up)."
        ) from None
    finally:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired, ValueError):  # one that waits in a driver outlives this
            process.communicate(timeout=5)
