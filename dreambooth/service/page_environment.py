"""Where the page runs without a WebUI: gradio in a small environment of its own, made when it is first wanted.

Gradio is no part of the engine's lock: most people have it in their WebUI, and its packages would bind the engine's.
"""

from __future__ import annotations

import json
from pathlib import Path

from dreambooth.core.files import atomic
from dreambooth.core.install_paths import PAGE, PAGE_LOCK, PAGE_SETTING_UP, PAGE_TESTS_LOCK
from dreambooth.service import environment, installed_files, packages, pip_failures, setup_lock, venv
from dreambooth.service.packages import Progress

STAMP = PAGE / "stamp.json"
PORT_IS_TAKEN = 2  # the exit code of the page's process where another program listens there


def ensure(progress: Progress, *, tests: bool = False) -> Path:
    """The page's Python, set up first where needed. Raises UserError when that fails."""
    if not _is_current(tests):
        with setup_lock.held(PAGE_SETTING_UP, progress):
            if not _is_current(tests):  # unless another was faster
                _set_up(progress, tests=tests)
    return venv.python_in(PAGE)


def repair(progress: Progress) -> None:
    """Puts back what is damaged or gone in the environment, if there is one. Raises UserError when that fails."""
    if not PAGE.is_dir():
        return
    with setup_lock.held(PAGE_SETTING_UP, progress):
        _set_up(progress, compare=True)


def _set_up(progress: Progress, *, tests: bool = False, compare: bool = False) -> None:
    """Makes or completes the environment; where what is there stands in the way of pip, it is made anew."""
    locks = _locks(tests)
    try:
        _install(locks, progress, compare=compare)
    except pip_failures.Damaged as error:
        progress(f"{error} Making it anew")
        packages.make(PAGE, progress, anew=True)
        _install(locks, progress)


def _install(locks: list[Path], progress: Progress, *, compare: bool = False) -> None:
    """The packages of the locks; with `compare` those are put back whose files differ from what was installed."""
    atomic.remove(STAMP)
    packages.make(PAGE, progress)
    if compare:
        with venv.short(PAGE) as reached:
            site = venv.site_packages_in(reached)
            damaged = installed_files.damaged(site, progress)
            installed_files.forget_bytecode(site)
        packages.put_back(PAGE, damaged, locks, progress)
    for lock in locks:
        packages.install_lock(PAGE, lock, progress)
    atomic.write_text(STAMP, json.dumps({lock.name: environment.digest(lock) for lock in locks}))


def _is_current(tests: bool) -> bool:
    """Whether the environment is complete and made from today's lock files."""
    return venv.has_python(PAGE) and all(map(_has, _locks(tests)))


def _locks(tests: bool) -> list[Path]:
    return [PAGE_LOCK, PAGE_TESTS_LOCK] if tests or _has(PAGE_TESTS_LOCK) else [PAGE_LOCK]


def _has(lock: Path) -> bool:
    """Whether the environment was made from today's version of a lock file."""
    try:
        return bool(json.loads(atomic.read(STAMP)).get(lock.name) == environment.digest(lock))
    except (OSError, ValueError):
        return False
