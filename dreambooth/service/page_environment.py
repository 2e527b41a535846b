"""Where the page runs without a WebUI: gradio in a small environment of its own, made when it is first wanted.

Gradio is no part of the engine's lock: most people have it in their WebUI, and its packages would bind the engine's.
"""

from __future__ import annotations

import json
from pathlib import Path

from dreambooth.core.files import atomic
from dreambooth.core.install_paths import PAGE, PAGE_LOCK, PAGE_TESTS_LOCK
from dreambooth.service import environment, packages, venv
from dreambooth.service.packages import Progress

STAMP = PAGE / "stamp.json"


def ensure(progress: Progress, *, tests: bool = False) -> Path:
    """The page's Python, set up first where needed. Raises UserError when that fails."""
    locks = [PAGE_LOCK, PAGE_TESTS_LOCK] if tests or _has(PAGE_TESTS_LOCK) else [PAGE_LOCK]
    if not all(_has(lock) for lock in locks):
        atomic.remove(STAMP)
        packages.make(PAGE, progress)
        for lock in locks:
            packages.install_lock(PAGE, lock, progress)
        atomic.write_text(STAMP, json.dumps({lock.name: environment.digest(lock) for lock in locks}))
    return venv.python_in(PAGE)


def _has(lock: Path) -> bool:
    """Whether the environment was made from today's lock file."""
    try:
        return bool(json.loads(STAMP.read_text(encoding="utf-8")).get(lock.name) == environment.digest(lock))
    except (OSError, ValueError):
        return False
