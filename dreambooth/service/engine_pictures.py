"""Pictures of kinds that this process's Pillow does not know, such as a phone's HEIC: the engine's Python reads them.

Its start takes longer than most pictures. So it is asked once for each, as it is then, and for all sizes of a folder
together; what it said is kept for as long as this process lasts.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import PROJECT
from dreambooth.core.picture_opening import is_container
from dreambooth.service import environment

LARGEST = 768  # pixels along the longer side of what is kept of a picture
_KEPT = 500  # pictures, of some 100 kB each
_MOST_AT_ONCE = 2_000  # of which the sizes are asked for
_SECONDS = 60
_FEW = threading.BoundedSemaphore(2)  # processes at a time, however many pictures a page shows
_LOCK = threading.Lock()
_SIZES: dict[tuple[Path, int], tuple[int, int] | str] = {}


def is_one(path: Path) -> bool:
    """Whether the engine may know a picture that is strange to this process's Pillow, by its first bytes."""
    try:
        return is_container(path)
    except OSError:
        return False


def size(path: Path, alike: Callable[[], Sequence[Path]]) -> tuple[int, int]:
    """Width and height in pixels, upright. `alike` are those of which the size will be wanted next.

    Raises UserError where the engine cannot read it, or is not there yet.
    """
    with _LOCK:
        if _as_it_is(path) not in _SIZES:
            others = {_as_it_is(one) for one in alike() if is_one(one)} - {_as_it_is(path), *_SIZES}
            asked = [_as_it_is(path), *sorted(others)][:_MOST_AT_ONCE]
            _SIZES.update(zip(asked, _sizes([one for one, _ in asked])))
        told = _SIZES[_as_it_is(path)]
    if isinstance(told, str):
        raise UserError(told)
    return told


def jpeg(path: Path, *, whole: bool = False) -> bytes:
    """A JPEG of the upright picture, as large as it is or at most LARGEST pixels long.

    Raises UserError where the engine cannot read it, or is not there yet.
    """
    return _converted(path, 0) if whole else _kept(*_as_it_is(path))


def _as_it_is(path: Path) -> tuple[Path, int]:
    return path, path.stat().st_mtime_ns


@lru_cache(maxsize=_KEPT)
def _kept(path: Path, changed: int) -> bytes:
    return _converted(path, LARGEST)


def _sizes(paths: Sequence[Path]) -> list[tuple[int, int] | str]:
    said = _ask(["sizes"], json.dumps([str(path) for path in paths]).encode())
    return [one if isinstance(one, str) else (one[0], one[1]) for one in json.loads(said)]


def _converted(path: Path, side: int) -> bytes:
    return _ask(["jpeg", str(path), str(side)])


def _ask(arguments: Sequence[str], given: bytes = b"") -> bytes:
    if not environment.is_current():
        raise UserError("This kind of picture is shown as soon as the engine is set up, which reads it.")
    command = [str(environment.python()), "-m", "dreambooth.engine", *arguments]
    variables = environment.engine_variables()
    try:
        with _FEW:
            done = subprocess.run(
                command, input=given, capture_output=True, cwd=PROJECT, env=variables, timeout=_SECONDS
            )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"The engine could not be asked for a picture ({error}).") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise UserError(said[-1][:500])
    return done.stdout
