"""Pictures of kinds that this process's Pillow does not know, such as a phone's HEIC: the engine's Python reads them.

Its start takes longer than most pictures. So it is asked once for each, as it is then, and for all sizes of a folder
together; what it said, or that it broke off at one, is kept for as long as this process lasts, but for pictures of
full size.
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
_AsItIs = tuple[Path, int, int]  # a file with its length and when it was changed
_SIZES: dict[_AsItIs, tuple[int, int] | str] = {}
_PROBLEMS: dict[tuple[_AsItIs, int], str] = {}  # why there is no JPEG with so long a side, by picture
_SUSPECTS: set[_AsItIs] = set()  # at which the engine broke off after others: asked for when their own turn comes


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
    wanted = _as_it_is(path)
    with _LOCK:
        if wanted not in _SIZES:
            others = {_as_it_is(one) for one in alike() if is_one(one)} - {wanted, *_SIZES, *_SUSPECTS}
            _learn([wanted, *sorted(others)][:_MOST_AT_ONCE])
        answer = _SIZES[wanted]
    if isinstance(answer, str):
        raise UserError(answer)
    return answer


def _learn(asked: Sequence[_AsItIs]) -> None:
    """Keeps the size of the first, and of as many of the others as the engine comes to."""
    found, problem = _sizes([one for one, *_ in asked])
    _SIZES.update(zip(asked, found))
    if not found:
        _SIZES[asked[0]] = _broke_off(asked[0][0], problem)
    elif len(found) < len(asked):
        _SUSPECTS.add(asked[len(found)])


def jpeg(path: Path, *, whole: bool = False) -> bytes:
    """A JPEG of the upright picture, as large as it is or at most LARGEST pixels long.

    Raises UserError where the engine cannot read it, or is not there yet.
    """
    return _converted(_as_it_is(path), 0) if whole else _kept(*_as_it_is(path))


def _as_it_is(path: Path) -> _AsItIs:
    about = path.stat()
    return path, about.st_size, about.st_mtime_ns


@lru_cache(maxsize=_KEPT)
def _kept(path: Path, length: int, changed: int) -> bytes:
    return _converted((path, length, changed), LARGEST)


def _sizes(paths: Sequence[Path]) -> tuple[list[tuple[int, int] | str], str]:
    """Those of as many as the engine came to, and why it broke off then. Raises UserError where it never began."""
    output, problem = _ask(["sizes"], json.dumps([str(path) for path in paths]).encode())
    lines = [line.strip() for line in output.split(b"\n")[:-1]]
    if b"ready" not in lines:
        raise UserError(f"The engine could not be asked for a picture ({problem}).")
    found = map(json.loads, lines[lines.index(b"ready") + 1 :])
    return [one if isinstance(one, str) else (one[0], one[1]) for one in found], problem


def _converted(wanted: _AsItIs, side: int) -> bytes:
    """A JPEG of at most `side` pixels along the longer side, or as large as the picture with 0.

    Raises UserError where the engine cannot read it, or is not there yet.
    """
    if (wanted, side) not in _PROBLEMS:
        picture, problem = _ask(["jpeg", str(wanted[0]), str(side)])
        if not problem:
            return picture
        _PROBLEMS[wanted, side] = problem if str(wanted[0]) in problem else _broke_off(wanted[0], problem)
    raise UserError(_PROBLEMS[wanted, side])


def _broke_off(path: Path, problem: str) -> str:
    return f"{path}: the engine broke off at this picture ({problem}); save it anew, or take it away."


def _ask(arguments: Sequence[str], given: bytes = b"") -> tuple[bytes, str]:
    """What the engine says, and why it broke off; empty where it did not."""
    if not environment.is_current():
        raise UserError("This kind of picture is shown as soon as the engine is set up, which reads it.")
    command = [str(environment.python()), "-m", "dreambooth.engine", *arguments]
    variables = environment.engine_variables()
    try:
        with _FEW:
            completed = subprocess.run(
                command, input=given, capture_output=True, cwd=PROJECT, env=variables, timeout=_SECONDS
            )
    except subprocess.TimeoutExpired as error:
        return error.stdout or b"", f"it took the engine more than {_SECONDS} seconds"
    except OSError as error:
        raise UserError(f"The engine could not be asked for a picture ({error}).") from None
    if not completed.returncode:
        return completed.stdout, ""
    last = completed.stderr.decode(errors="replace").strip().splitlines()[-1:]
    return completed.stdout, last[0][:500] if last else f"it ended with code {completed.returncode}"
