"""Virtual environments, also by a Python that has no `venv` of its own, and where a path is too long for Windows."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic
from dreambooth.service import pip_failures

# For a Python without venv, such as the portable ones that WebUIs for Windows bring; it is not kept.
VIRTUALENV = "virtualenv==21.15.8"
_RUN_IT = "import sys; sys.path.insert(0, sys.argv[1]); from virtualenv import cli_run; cli_run(sys.argv[2:])"
# What has pip install into another place than the environment that it is of, be that the WebUI's.
_ELSEWHERE = {"PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER", "PIP_PYTHON", "PYTHONPATH", "PYTHONHOME"}
# What has it install something else than it is told, or nothing. NVIDIA's containers hold packages at their versions.
_OTHERWISE = {
    *("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT", "PIP_REQUIREMENT", "PIP_REQUIREMENTS_FROM_SCRIPT", "PIP_EDITABLE"),
    *("PIP_GROUP", "PIP_PLATFORM", "PIP_PYTHON_VERSION", "PIP_IMPLEMENTATION", "PIP_ABI", "PIP_NO_BINARY", "PIP_PRE"),
    *("PIP_NO_DEPS", "PIP_NO_DEPENDENCIES", "PIP_UPGRADE", "PIP_UPGRADE_STRATEGY", "PIP_FORCE_REINSTALL"),
    *("PIP_IGNORE_INSTALLED", "PIP_DRY_RUN", "PIP_REQUIRE_HASHES", "PIP_REQUIRE_VIRTUALENV"),
}
_WITHOUT_VENV = ("No module named venv", "No module named 'venv'", "ensurepip")

# Windows opens no path of more characters unless it was told to. The longest that we install are licences of PyTorch.
_MOST_CHARACTERS = 259 if os.name == "nt" else sys.maxsize
_LONGEST_PACKED = 180


def python_in(folder: Path) -> Path:
    """The Python of the environment in a folder."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def has_python(folder: Path) -> bool:
    """Whether the Python of the environment in a folder is there, and the one that it was made with: on Windows the
    former only starts the latter, which it knows by its place."""
    home = _home(folder)
    return python_in(folder).exists() and not (home and _is_gone(home))


def _home(folder: Path) -> str:
    """Where the Python lies that an environment was made with; empty where it does not say."""
    try:
        said = (folder / "pyvenv.cfg").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""
    found = re.search(r"^home *= *(.*)$", said, re.MULTILINE)
    return found[1].strip() if found else ""


def _is_gone(place: str) -> bool:
    try:
        Path(place).stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):  # Windows keeps some of its own from being looked at
        return False
    return False


def site_packages_in(folder: Path) -> Path:
    """Where the packages of the environment in a folder lie; the folder need not exist yet."""
    return next(folder.glob("lib/python*/site-packages"), folder / "Lib" / "site-packages")


def variables() -> dict[str, str]:
    """Environment variables for a pip that installs what and where it is told: those that say so are left out; those of
    the index, the proxy and the configuration stay."""
    kept = {key: value for key, value in os.environ.items() if key.upper() not in _ELSEWHERE | _OTHERWISE}
    return {**kept, "PIP_USER": "0", "PYTHONNOUSERSITE": "1"}


def here(folder: Path) -> list[str]:
    """What a `pip install` is told where a configuration names another place than the environment of a folder, with as
    much as that names. What `user` says there, our variables outdo; an empty target is none."""
    command = [str(python_in(folder)), "-m", "pip", "--disable-pip-version-check", "config", "list"]
    output = subprocess.run(command, capture_output=True, text=True, errors="replace", env=variables()).stdout
    own = {"target": "", "prefix": str(folder.absolute()), "root": folder.absolute().anchor}
    named = set(re.findall(r"^(?:global|install)\.(target|prefix|root)=", output, re.MULTILINE))
    return [word for key in sorted(named) for word in (f"--{key}", own[key])]


def make(folder: Path, progress: Callable[[str], None]) -> None:
    """A new environment with a pip; what was there is removed. Raises UserError if it cannot be made."""
    progress(f"Making a Python environment in {folder.name}")
    _empty(folder)
    error = _error_of([sys.executable, "-m", "venv", str(folder)])
    if not error:
        return
    shutil.rmtree(folder, ignore_errors=True)
    if not any(words in error for words in _WITHOUT_VENV):
        raise UserError(
            f"{folder}: the environment cannot be made ({error.splitlines()[-1].rstrip('.')}); see that this user may "
            "write there and that the disk has room, and run setup again."
        )
    _make_with_virtualenv(folder, progress)


def _empty(folder: Path) -> None:
    """Removes what is in a folder; of Windows it may be a junction to one on a larger disk. Raises UserError for what
    stays: packages for another Python would be taken for installed."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            atomic.remove_folder(path)
        else:
            with contextlib.suppress(OSError):
                atomic.remove(path)
    stays = sorted(folder.rglob("*"), key=lambda path: path.is_dir())
    if stays:
        raise UserError(
            f"{stays[0]}: this file of the old environment cannot be removed; close the program that has it open, or "
            "restart the computer, and run setup again."
        )


def _make_with_virtualenv(folder: Path, progress: Callable[[str], None]) -> None:
    progress("This Python has no venv module; fetching virtualenv")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        pip = ["-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--target", place, VIRTUALENV]
        if error := _error_of([sys.executable, *pip]):
            failure = pip_failures.of(error.splitlines(), "virtualenv (this Python has no venv module)", Path(place))
            if isinstance(failure, (pip_failures.NoAnswer, pip_failures.DiskIsFull)):
                raise failure
        else:
            kept = str(Path(place) / "kept")
            error = _error_of([sys.executable, "-c", _RUN_IT, place, "--app-data", kept, str(folder)])
    if error:
        shutil.rmtree(folder, ignore_errors=True)
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        raise UserError(
            f"This Python has no venv module, and virtualenv does not help ({error.splitlines()[-1].rstrip('.')}); "
            f"install it (Debian, Ubuntu: python{version}-venv), or start this with another Python."
        )


def _error_of(command: list[str]) -> str:
    """What a command that failed said; empty where it did not fail."""
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", env=variables())
    return ((result.stdout + result.stderr).strip() or "no reason given") if result.returncode else ""


@contextlib.contextmanager
def short(folder: Path) -> Iterator[Path]:
    """Another path to an environment, where its own is too long for what is installed in it: Windows counts the
    characters that it is told, not those of the place where they lead. Afterwards nothing that is too long is left, as
    the Explorer could not remove it."""
    site = site_packages_in(folder)
    if len(str(site)) + 1 + _LONGEST_PACKED <= _MOST_CHARACTERS:
        yield folder
        return
    place = Path(tempfile.mkdtemp(prefix="db"))
    link = place / "e"
    try:
        _link(folder, link)
    except OSError as error:
        place.rmdir()
        raise UserError(
            f"{folder}: this path is too long for Windows, and has no shorter one ({error.strerror}); put the WebUI "
            "into a folder with a shorter path, or have Windows allow long ones (LongPathsEnabled)."
        ) from None
    try:
        yield link
        for licences in (link / site.relative_to(folder)).glob("*.dist-info/licenses"):
            if any(len(str(folder / file.relative_to(link))) > _MOST_CHARACTERS for file in licences.rglob("*")):
                _pack(licences)
    finally:
        link.unlink()
        place.rmdir()


def _link(folder: Path, link: Path) -> None:
    if sys.platform == "win32":
        import _winapi

        _winapi.CreateJunction(str(folder), str(link))
    else:
        link.symlink_to(folder)


def _pack(folder: Path) -> None:
    """A package's licences as one archive, which goes with the package when that is removed."""
    about, name = folder.parent, folder.name
    packed = shutil.make_archive(str(about / name), "zip", folder)
    shutil.rmtree(folder)
    folder.mkdir()
    os.replace(packed, folder / Path(packed).name)
    with open(about / "RECORD", "a", encoding="utf-8") as record:
        print(f"{about.name}/{name}/{Path(packed).name},,", file=record)
