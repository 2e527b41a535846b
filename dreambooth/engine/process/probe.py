"""What may end its process is tried in another one first.

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
REACHED = "reached"  # what it says first, when the device has done something for it

Choice = tuple[str, str]  # of a setting: its key, and what is chosen
Tried = Callable[[], str]  # in this process: why something does not work; empty if it does

_known: dict[tuple[Choice, str], str | None] = {}


def fault(choice: Choice, device: torch.device, tried: Tried) -> str:
    """Why a choice does not work on a device, found without danger to this process; empty if it does.

    `tried` is for where there is no danger: the CPU, and a card on which the set-up saw it work; and for where another
    process cannot reach the device, as on a card that takes one at a time.
    """
    if (choice, str(device)) not in _known and not _is_dangerous(choice, device):
        return tried()
    ask([choice], device)
    found = _known[choice, str(device)]
    return tried() if found is None else found


def ask(choices: Sequence[Choice], device: torch.device) -> None:
    """Has what is not known of these choices tried in another process; where it ends on one, the next goes on."""
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
    """What another process says of these in turn, as far as it comes: the last is then why it has ended. None for all
    where it did not get to the device."""
    arguments = ["selfcheck", str(device), *("=".join(choice) for choice in choices)]
    command = [sys.executable, "-m", "dreambooth.engine", *arguments]
    try:
        ended = subprocess.run(
            command, cwd=PROJECT, capture_output=True, encoding="utf-8", errors="replace", timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        yield f"it did not answer within {SECONDS} seconds"
        return
    said = ended.stdout.splitlines()
    if REACHED not in said:
        yield from [None] * len(choices)
        return
    reasons = [str(json.loads(line)) for line in said[said.index(REACHED) + 1 :]]
    yield from reasons
    if len(reasons) < len(choices):
        lines = ended.stderr.strip().splitlines() or [f"code {ended.returncode}"]
        yield f"it ends the process: {lines[-1][:200].rstrip('.')}"
