"""The engine's own Python environment: made, checked and repaired here, never the WebUI's.

It lies in `.engine` inside the project's folder and goes with it. A stamp says that it is complete and
made from today's lock; comparing the stamp is all that happens on an ordinary start.
Works from a bare Python 3.10 to 3.13 with only the standard library.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from dreambooth.core import device, linux
from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic, lock, occupancy
from dreambooth.core.install_paths import DEVELOPMENT_LOCK, ENGINE, ENGINE_USERS, LOCK, PROJECT, SETTING_UP, STAMP
from dreambooth.service import installed_files, packages, pip_failures, self_check, setup_lock, torch_build, venv
from dreambooth.service.packages import Progress
from dreambooth.service.self_check import CardFails, DoesNotWork

VARIABLE = "DREAMBOOTH_ENGINE_PYTHON"
CHECKING = "Checking that it works"


def python() -> Path:
    """The engine's Python: the one that DREAMBOOTH_ENGINE_PYTHON names, or our environment's."""
    named = os.environ.get(VARIABLE)
    if named:
        if not Path(named).is_file():
            raise UserError(f"{VARIABLE} names {named}, but there is no such file; correct or remove it.")
        return Path(named)
    return venv.python_in(ENGINE)


def is_current(*, development: bool = False) -> bool:
    """Whether the environment is complete and made from today's locks. No network, no subprocess."""
    if named := os.environ.get(VARIABLE):
        return Path(named).is_file()
    return has_todays_packages(development=development) and venv.has_python(ENGINE)


def has_todays_packages(*, development: bool = False) -> bool:
    """Whether the environment was made from today's locks to the end; its Python may be gone since."""
    stamp = _stamp()
    is_of_development = stamp.get("development") == digest(DEVELOPMENT_LOCK)
    return bool(stamp.get("engine") == digest(LOCK) and (not development or is_of_development))


def is_being_set_up() -> bool:
    return lock.is_held(SETTING_UP)


def is_awaited() -> bool:
    """Whether jobs wait for the engine, as it is set up or will be. Nobody sets up one that DREAMBOOTH_ENGINE_PYTHON
    names: where there is none, what would start it says so."""
    return is_being_set_up() or not (is_current() or os.environ.get(VARIABLE))


def lock_digest() -> str:
    """Which version of the engine's packages this version of the project wants."""
    return digest(LOCK)


def ensure(progress: Progress, *, development: bool = False) -> Path:
    """The engine's Python, set up first where needed. Raises UserError when that fails."""
    if not is_current(development=development):
        with _alone(progress):
            if not is_current(development=development):  # unless another was faster
                _set_up(progress, development=development)
    return python()


def set_up(progress: Progress, *, development: bool = False) -> dict[str, Any]:
    """Makes the environment or repairs it; running it again after a failure goes on where it stopped. Another engine,
    whose packages are not ours to change, is checked alone. Returns the check's report."""
    if os.environ.get(VARIABLE):
        return check()
    with _alone(progress) as has_waited:
        if has_waited and is_current(development=development):  # another has made it, and it may be in use
            with contextlib.suppress(DoesNotWork):
                progress(CHECKING)
                return check()
        return _set_up(progress, development=development)


@contextlib.contextmanager
def _alone(progress: Progress) -> Iterator[bool]:
    """Nobody else sets up meanwhile. Yields whether another had to be waited for. Raises UserError for what cannot be
    set up here, with all left as it is."""
    python()  # refuses a variable that names nothing
    _check_host()
    with setup_lock.held(SETTING_UP, progress) as has_waited:
        yield has_waited


def _set_up(progress: Progress, *, development: bool) -> dict[str, Any]:
    _wait_for_engines(progress)
    development = development or "development" in _stamp()
    atomic.remove(STAMP)
    machine = torch_build.look()
    locks = [LOCK, DEVELOPMENT_LOCK] if development else [LOCK]
    is_new = packages.make(ENGINE, progress)
    try:
        report, note = _install(machine, locks, progress)
    except (DoesNotWork, pip_failures.Damaged) as error:
        if is_new or isinstance(error, CardFails) or not _may_be_removed():
            raise
        progress(f"{error} Making it anew")
        packages.make(ENGINE, progress, anew=True)
        report, note = _install(machine, locks, progress)
    stamp = {"engine": digest(LOCK), "made": time.time(), "report": report, "note": note}
    stamp["builds"] = torch_build.names(machine)
    if development:
        stamp["development"] = digest(DEVELOPMENT_LOCK)
    atomic.write_text(STAMP, json.dumps(stamp, indent=1))
    progress(f"Ready: PyTorch {report['torch']} on {report['device_name']}")
    return report


def _may_be_removed() -> bool:
    """Whether what failed is not the environment that this very process runs in."""
    return Path(sys.prefix).resolve() != ENGINE.resolve()


def was_made() -> bool:
    """Whether an environment has been set up to the end, from these locks or earlier ones."""
    return STAMP.exists()


def note() -> str:
    """Why a card of this machine is not used, as the set-up found; empty where it is, or there is none."""
    return str(_stamp().get("note", ""))


def is_for_this_machine() -> bool:
    """Whether the set-up would choose the same builds of PyTorch again; another card or driver asks for others."""
    made_for = _stamp().get("builds")
    return made_for is None or made_for == torch_build.names(torch_build.look())


def check() -> dict[str, Any]:
    """Runs the engine's self-check: its imports, a matrix product and a small UNet step on the device.

    Returns its report (python, package versions, device). Raises DoesNotWork if it fails.
    """
    of_another = f"Mend its packages, or have {VARIABLE} name another."
    mend = of_another if os.environ.get(VARIABLE) else self_check.SET_UP_AGAIN
    return self_check.run(python(), engine_variables(), mend)


# What SD.Next has PyTorch do where a person has chosen nothing. With a limit of memory, which an engine sets, it gives
# back beyond that share what it asks for again, and it is not what an engine's memory is forecast by.
_OF_SDNEXT = re.compile(r"garbage_collection_threshold:[\d.]+,max_split_size_mb:512(,expandable_segments:True)?")
_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")  # of PyTorch, by age
_NVIDIA, _AMD = Path("/proc/driver/nvidia"), Path("/dev/kfd")  # what their drivers show


def engine_variables() -> dict[str, str]:
    """Environment variables for an engine process: ours on its path, the WebUI's left out, no hub. A path that a person
    has set up beside another engine's Python is that one's, and stays behind ours."""
    dropped = ("COMMANDLINE_ARGS", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
    # A WebUI that was started with --cuda-malloc has an allocator that counts otherwise, and knows no limits.
    variables = {
        key: value
        for key, value in os.environ.items()
        if key not in dropped and "cudaMallocAsync" not in value and not _OF_SDNEXT.fullmatch(value)
    }
    paths = [str(PROJECT), os.environ.get("PYTHONPATH", "") if os.environ.get(VARIABLE) else ""]
    variables.update(
        PYTHONPATH=os.pathsep.join(filter(None, paths)),
        PYTHONNOUSERSITE="1",
        PYTHONUTF8="1",
        HF_HUB_OFFLINE="1",
        TOKENIZERS_PARALLELISM="false",
        PYTORCH_ENABLE_MPS_FALLBACK="1",  # what PyTorch lacks on an Apple GPU is done by the CPU, not refused
        # Threads that wait by spinning stall on a shared CPU; those that sleep at once wake too late on an idle one. So
        # they spin for a moment, then sleep.
        OMP_WAIT_POLICY=os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        GOMP_SPINCOUNT=os.environ.get("GOMP_SPINCOUNT", "1000"),
    )
    if _does_expandable_segments() and not any(key in variables for key in _ALLOCATOR):
        # Else pieces of many sizes leave gaps that nothing fits.
        variables[_ALLOCATOR[0]] = "expandable_segments:True"
    if number := os.environ.get(device.GPU_VARIABLE):
        seen = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
        # Some WebUIs show themselves that one GPU alone, and it is the first then.
        variables["CUDA_VISIBLE_DEVICES"] = number if not seen else seen[min(int(number), len(seen) - 1)]
    return variables


def _does_expandable_segments() -> bool:
    """Whether PyTorch's allocator may map memory piece by piece, which it does on Linux alone.

    In WSL drivers before R615 refuse the first allocation on some cards (pytorch/pytorch issue 192330). On a card of
    AMD PyTorch may wait for good or crash (issues 192259 and 187343), and a CUDA graph that cannot be captured leaves
    the random numbers broken (issue 179911).
    """
    if sys.platform != "linux" or linux.is_in_windows():
        return False
    return _NVIDIA.exists() or not _AMD.exists()


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
            f"{PROJECT}: the engine's environment needs about {needed} GB of free disk (there: {free / 10**9:.1f} GB); "
            "make room."
        )


def _wait_for_engines(progress: Progress) -> None:
    """Packages are not changed under an engine that works with them; while the set-up's lock is held none starts."""
    while count := occupancy.users(ENGINE_USERS):
        progress(f"Waiting for {count} job{'s' * (count > 1)} to end; pause what is running to go on at once")
        time.sleep(1)


def _install(machine: torch_build.Machine, locks: list[Path], progress: Progress) -> tuple[dict[str, Any], str]:
    """All packages into an environment that is there. Returns as `_with_torch` does."""
    for lock_file in locks:
        packages.install_lock(ENGINE, lock_file, progress)
    return _with_torch(machine, progress)


def _with_torch(machine: torch_build.Machine, progress: Progress) -> tuple[dict[str, Any], str]:
    """Installs PyTorch and checks all. Returns the check's report, and why a card is not used."""
    note = torch_build.note(machine)
    if note:
        progress(note)
    _install_torch(machine, progress)
    try:
        return _checked(machine, progress), note
    except DoesNotWork as error:
        if not torch_build.is_amd(machine):
            raise
        progress(f"{error} Taking the CPU")
    machine, note = replace(machine, has_amd=False), "PyTorch does not work on this AMD GPU: training uses the CPU."
    _install_torch(machine, progress)
    return check(), note


def _checked(machine: torch_build.Machine, progress: Progress) -> dict[str, Any]:
    """The check's report, where it fails after what is damaged was put back."""
    progress(CHECKING)
    try:
        return check()
    except DoesNotWork as error:
        progress(str(error))
        with venv.short(ENGINE) as reached:
            damaged = installed_files.damaged(venv.site_packages_in(reached), progress)
        if isinstance(error, CardFails) and not damaged:
            raise
    if damaged:
        with contextlib.suppress(pip_failures.NotThere):  # left from an earlier version's lock
            _reinstall(damaged, machine, progress)
        progress(CHECKING)
        with contextlib.suppress(DoesNotWork):
            return check()
    progress("Removing what Python has compiled")
    with venv.short(ENGINE) as reached:
        installed_files.forget_bytecode(venv.site_packages_in(reached))
    progress(CHECKING)
    return check()


def _reinstall(damaged: list[tuple[str, str]], machine: torch_build.Machine, progress: Progress) -> None:
    """Puts packages back as they were. What no lock names came with PyTorch, from where that did."""
    others = packages.put_back(ENGINE, damaged, [LOCK, DEVELOPMENT_LOCK], progress)
    if others:
        built = next(
            (one for one in torch_build.builds(machine) if one.name == _installed_build()), torch_build.DEFAULT
        )
        arguments = [*packages.IN_PLACE, *built.arguments, *others]
        packages.install(ENGINE, arguments, progress, f"PyTorch ({built.name})")


def _install_torch(machine: torch_build.Machine, progress: Progress) -> None:
    """Tries the builds in turn. Everything else is installed by now, so only PyTorch's own parts are fetched."""
    wanted = next(line for line in packages.requirements(LOCK) if line.startswith("torch=="))
    builds = torch_build.builds(machine)
    as_good = {None, *([""] if torch_build.DEFAULT in builds else [])}  # the default index's is called by no name
    while builds:
        build = builds.pop(0)
        takes_place = build.arguments and _installed_build() not in {*as_good, build.name}
        arguments = [*build.arguments, "--retries", "2", f"{wanted}+{build.name}" if takes_place else wanted]
        try:
            packages.install(ENGINE, arguments, progress, f"PyTorch ({build.name})")
            return
        except pip_failures.NoAnswer:
            builds = [one for one in builds if not one.arguments]  # the others are of the same place
            if not builds:
                raise
        except pip_failures.NotThere as error:
            if not builds:
                raise UserError(f"{error} {torch_build.hint(machine)}".strip()) from None
        progress(f"PyTorch ({build.name}) is not to be had; trying the next")


def _installed_build() -> str | None:
    """`cu130` of an installed PyTorch 2.13.0+cu130; empty where it does not say, None where there is none."""
    found = next(venv.site_packages_in(ENGINE).glob("torch-*.dist-info"), None)
    return found.name.removesuffix(".dist-info").partition("+")[2] if found else None


def digest(lock_file: Path) -> str:
    return hashlib.sha256(lock_file.read_bytes()).hexdigest()


def _stamp() -> dict[str, Any]:
    try:
        return dict(json.loads(atomic.read(STAMP)))
    except (OSError, ValueError, TypeError):
        return {}
