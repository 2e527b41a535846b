"""Where things lie in the project's own folder, and how the engine's processes are set up."""

from __future__ import annotations

from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
ENGINE = PROJECT / ".engine"  # the engine's Python environment
STAMP = ENGINE / "stamp.json"  # that it is complete, from which locks, and what was found to work
ENGINE_USERS = PROJECT / ".engine.users"  # a locked file for each process that works with the environment
SETTING_UP = PROJECT / ".engine.lock"  # held by the process that sets the environment up
LOCK = PROJECT / "engine-lock.txt"
PAGE = PROJECT / ".page"  # the page's Python environment, where there is no WebUI
PAGE_SETTING_UP = PROJECT / ".page.lock"  # held by the process that sets that up
PAGE_LOCK = PROJECT / "page-lock.txt"
PAGE_TESTS_LOCK = PROJECT / "page-tests-lock.txt"
DEVELOPMENT_LOCK = PROJECT / "development-lock.txt"
MINIATURE = PROJECT / "miniature" / "miniature.safetensors"
MINIATURES = {
    "sd1": MINIATURE,
    "sd2": MINIATURE.with_name("miniature-sd2.safetensors"),
    "sdxl": MINIATURE.with_name("miniature-sdxl.safetensors"),
}
SUBJECT_PICTURES = PROJECT / "miniature" / "subject"
