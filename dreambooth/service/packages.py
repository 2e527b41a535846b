"""Installing packages with pip, and how far it is."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from dreambooth.service import pip_failures, venv

PIP = "pip==26.3"
# pip would remove what is there by its RECORD, which may be damaged too; the same version's files replace it.
IN_PLACE = ("--no-deps", "--ignore-installed", "--no-warn-script-location")

Progress = Callable[[str], None]


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

    Raises UserError, of a kind that `pip_failures` has where that is known."""
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
        raise pip_failures.of(output, what, folder)


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
