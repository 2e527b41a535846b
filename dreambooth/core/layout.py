"""Where things lie in the project's own folder, and how the engine's processes are set up."""

from __future__ import annotations

from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
ENGINE = PROJECT / ".engine"  # the engine's Python environment
STAMP = ENGINE / "stamp.json"  # that it is complete, from which locks, and what was found to work
LOCK = PROJECT / "engine-lock.txt"
DEVELOPMENT_LOCK = PROJECT / "development-lock.txt"
MINIATURE = PROJECT / "miniature" / "miniature.safetensors"
MINIATURES = {
    "sd1": MINIATURE,
    "sd2": MINIATURE.with_name("miniature-sd2.safetensors"),
    "sdxl": MINIATURE.with_name("miniature-sdxl.safetensors"),
}
SUBJECT_PICTURES = PROJECT / "miniature" / "subject"
