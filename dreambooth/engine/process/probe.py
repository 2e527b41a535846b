"""Trying in another process what may end the process.

bitsandbytes' library ends the whole process (`exit(1)`) where a card refuses one of its kernels, as every card does for
which it has none: nothing in Python can catch that.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from dreambooth.core import engine_capabilities
from dreambooth.core.install_paths import ENGINE, PROJECT
from dreambooth.engine import hardware

SECONDS = 120  # the most that another process may take
REACHED = "reached"  # the first line that it prints, once the device has computed something

Choice = tuple[str, str]  # a setting's key and value
Tried = Callable[[], str]  # tries it in this process: why it does not work; empty if it does

_known: dict[tuple[Choice, str], str | None] = {}


def fault(choice: Choice, device: torch.device, tried: Tried) -> str:
    """Why a choice does not work on a device, found without danger to this process; empty if it does.

    `tried` is called where there is no danger, on the CPU and on a GPU where it worked during the set-up, and where
    another process cannot use the device, as with a GPU that takes one process at a time.
    """
    if (choice, str(device)) not in _known and not _is_dangerous(choice, device):
        return tried()
    ask([choice], device)
    found = _known[choice, str(device)]
    return tried() if found is None else found


def ask(choices: Sequence[Choice], device: torch.device) -> None:
    """Tries the choices that are not known yet in another process; where that ends on one, a new one tries the rest."""
    left = [choice for choice in choices if (choice, str(device)) not in _known]
    while left:
        found = list(_answers(left, device))
        _known.update(zip(((choice, str(device)) for choice in left), found))
        left = left[len(found) :]


def _is_dangerous(choice: Choice, device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    return Path(sys.prefix) != ENGINE or not engine_capabilities.is_proven(*choice, hardware.name(device))


def _answers(choices: Sequence[Choice], device: torch.device) -> Iterator[str | None]:
    """What another process finds for these choices in turn. If it ends early, the last answer says why; None for all
    where it could not use the device."""
    arguments = ["selfcheck", str(device), *("=".join(choice) for choice in choices)]
    command = [sys.executable, "-m", "dreambooth.engine", *arguments]
    try:
        ended = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,  # on Windows it would hang at the pipe that a further process of a run listens to
            cwd=PROJECT,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        yield f"it did not answer within {SECONDS} seconds"
        return
    printed = ended.stdout.splitlines()
    if REACHED not in printed:
        yield from [None] * len(choices)
        return
    reasons = [str(json.loads(line)) for line in printed[printed.index(REACHED) + 1 :]]
    yield from reasons
    if len(reasons) < len(choices):
        lines = ended.stderr.strip().splitlines() or [f"code {ended.returncode}"]
        yield f"it ends the process: {lines[-1][:200].rstrip('.')}"
