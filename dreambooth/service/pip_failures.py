"""What went wrong when pip installed something, in a sentence."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from dreambooth.core.errors import UserError

# Also of a quota, and of Windows, whose sentences are in the computer's language.
_DISK_IS_FULL = r"\bENOSPC\b|Errno (28|122)\b|WinError (39|112)\b|No space left|Disk quota exceeded"
# Windows says so also of a file that another program has open, as a virus scanner may for a moment.
_MAY_NOT_WRITE = r"OSError: \[(Errno 13|WinError (5|32))\]"


class NotThere(UserError):
    """The package index answered, and has no such version for this Python and system."""


class NoAnswer(UserError):
    """The package index could not be reached."""


class DiskIsFull(UserError):
    """There is no room for what pip downloads or unpacks."""


class Damaged(UserError):
    """What is installed already stands in the way: pip itself, or a package that it cannot replace."""


def of(output: list[str], what: str, folder: Path) -> UserError:
    """The error for what a pip said that failed to install something, called `what`, into a folder."""
    text, reasons = "\n".join(output), _reasons(output)
    reason = (reasons or output or ["no reason given"])[-1].rstrip(".")
    failure = f"{what} could not be installed: {reason}. Run setup again to go on."
    # These two first: a download may have been tried twice before.
    if re.search(_DISK_IS_FULL, text):
        return DiskIsFull(f"{what}: the disk is full{_room(folder)}, and run setup again to go on.")
    if re.search(_MAY_NOT_WRITE, reason):
        return UserError(
            f"{what} could not be installed: {reason}; see that this user may write there and that no other program, "
            "such as a virus scanner, has the file open, and run setup again to go on."
        )
    if "error: incomplete-download" in output:
        return NoAnswer(f"{what}: the download broke off; look at the network, and run setup again to go on.")
    if "Retrying (" in text or "Could not fetch URL" in text:
        return NoAnswer(
            f"{what}: the package index cannot be reached; look at the network, or at the proxy (HTTPS_PROXY), and run "
            "setup again to go on."
        )
    if reason.startswith("No matching distribution"):
        return NotThere(failure)
    is_pip_broken = "Traceback (most" in text and not reasons
    return Damaged(failure) if is_pip_broken or "Cannot uninstall" in text else UserError(failure)


def _reasons(output: list[str]) -> list[str]:
    """What pip complained of, the earliest first. Some errors have a name, and what happened stands below it, before
    remarks and hints."""
    said = [line for line in output if line]
    found = []
    for number, line in enumerate(said):
        if line.startswith("ERROR"):
            found.append(line.removeprefix("ERROR: "))
        elif line.startswith("error: ") and said[number + 1 :]:
            found.append(said[number + 1].removeprefix("× "))
    return found


def _room(folder: Path) -> str:
    """How much is free where pip writes, and what to do: it unpacks in the folder, and downloads to a place for
    temporary files that may be on another, small disk."""
    try:
        places = [folder, Path(tempfile.gettempdir())]
        free = [f"{shutil.disk_usage(place).free / 1e9:.1f} GB free in {place}" for place in places]
        if places[0].stat().st_dev != places[1].stat().st_dev:
            return f" ({', '.join(free)}); make room, or name a folder of a larger disk in TMPDIR"
        return f" ({free[0]}); make room"
    except OSError:  # so full that no temporary file can be made
        return "; make room"
