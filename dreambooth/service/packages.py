"""Installing packages with pip: how far it is, and in a sentence what went wrong."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from dreambooth.core.errors import UserError
from dreambooth.service import venv

PIP = "pip==26.3"
# Also of a quota, and of Windows, whose sentences are in the computer's language.
_DISK_IS_FULL = r"\bENOSPC\b|Errno (28|122)\b|WinError (39|112)\b|No space left|Disk quota exceeded"
# Windows says the former of a file that another program has open, as a virus scanner may for a moment.
_MAY_NOT_WRITE = r"OSError: \[(Errno 13|WinError (5|32))\]"
# pip would remove what is there by its RECORD, which may be damaged too; the same version's files replace it.
IN_PLACE = ("--no-deps", "--ignore-installed", "--no-warn-script-location")

Progress = Callable[[str], None]


class NotThere(UserError):
    """The package index answered, and has no such version for this Python and system."""


class NoAnswer(UserError):
    """The package index could not be reached."""


class Damaged(UserError):
    """What is installed already stands in the way: pip itself, or a package that it cannot replace."""


def make(folder: Path, progress: Progress, *, anew: bool = False) -> bool:
    """An environment with our pip in a folder; one whose pip works is kept, unless it is to be made anew. Returns
    whether it was made. Raises UserError if it cannot be."""
    own = venv.python_in(folder)
    anew = anew or not own.exists() or not _has_pip(own)
    if anew:
        venv.make(folder, progress)
    install(folder, [PIP], progress, "pip")
    return anew


def _has_pip(python: Path) -> bool:
    try:
        command = [str(python), "-m", "pip", "install", "--help"]  # loads all that an installation needs
        return subprocess.run(command, capture_output=True, env=venv.variables()).returncode == 0
    except OSError:
        return False


def install_lock(folder: Path, lock_file: Path, progress: Progress) -> None:
    """The packages of a lock file, and no other, but PyTorch. Raises UserError if that fails."""
    wanted = [line for line in requirements(lock_file) if not line.startswith("torch==")]
    install(folder, ["--no-deps", "--no-warn-script-location", *wanted], progress, f"{len(wanted)} packages")


def put_back(
    folder: Path, damaged: Sequence[tuple[str, str]], lock_files: Iterable[Path], progress: Progress
) -> list[str]:
    """Installs those of the damaged packages (name and version) anew that a lock file names, at its version.

    Returns the requirements of the others, among them PyTorch, which is not of the ordinary index. Raises as `install`.
    """
    named = [PIP, *(line for file in lock_files for line in requirements(file) if not line.startswith("torch=="))]
    locked = {_plain(line.partition("==")[0]): line for line in named}
    ours = sorted({locked[_plain(name)] for name, _ in damaged if _plain(name) in locked})
    if ours:
        install(folder, [*IN_PLACE, *ours], progress, f"{len(ours)} damaged package{'s' * (len(ours) > 1)}")
    return [f"{name}=={version}" for name, version in damaged if _plain(name) not in locked]


def _plain(name: str) -> str:
    """A package's name as it is compared: Jinja2, jinja2 and open_clip-torch have several spellings."""
    return re.sub(r"[-_.]+", "-", name).lower()


def install(folder: Path, arguments: list[str], progress: Progress, what: str) -> None:
    """`pip install` with these arguments in the environment of a folder; `what` is what it is called meanwhile.

    Raises NotThere, NoAnswer, Damaged, or UserError for everything else."""
    progress(f"Installing {what}")
    output: list[str] = []
    with venv.short(folder) as reached:
        command = [str(venv.python_in(reached)), "-m", "pip", "--disable-pip-version-check", "--no-input", "install"]
        command += [*venv.here(reached), *(() if PIP in arguments else ("--progress-bar", "raw")), *arguments]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=venv.variables(), errors="replace"
        ) as process:
            try:
                for line in process.stdout or ():
                    output.append(line.strip())
                    if shown := progress_text(line, what):
                        progress(shown)
            except BaseException:
                process.terminate()
                raise
    if process.returncode:
        raise _failure(output, what, folder)


def _failure(output: list[str], what: str, folder: Path) -> UserError:
    text, reasons = "\n".join(output), _reasons(output)
    reason = (reasons or output or ["no reason given"])[-1].rstrip(".")
    failure = f"{what} could not be installed: {reason}. Run setup again to go on."
    # These two first: a download may have been tried twice before.
    if re.search(_DISK_IS_FULL, text):
        return UserError(f"{what}: the disk is full{_room(folder)}, and run setup again to go on.")
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


def progress_text(line: str, what: str) -> str:
    """What a line of pip's is worth telling a person; empty for most."""
    words = line.split()
    if line.startswith("Progress ") and len(words) == 4 and int(words[3]) > 20_000_000:
        return f"{what}: {int(words[1]) / 1e6:,.0f} of {int(words[3]) / 1e6:,.0f} MB"
    if words[:1] == ["Collecting"]:
        return f"{what}: {words[1].replace('==', ' ')}"
    if line.startswith("Installing collected"):
        return f"{what}: unpacking"
    return ""


def requirements(lock_file: Path) -> Iterator[str]:
    for line in lock_file.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            yield line.strip()
