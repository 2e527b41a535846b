"""Which folders may be named by whoever uses the page or the API. A WebUI that others use too can be started so that
none but its own are; the command line, which only the machine's owner has, is never confined."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from dreambooth.core.errors import UserError
from dreambooth.core.files import paths

FLAG = "--hide-ui-dir-config"  # A1111's, Forge's and reForge's

_own: Callable[[], Iterable[Path]] | None = None  # of this process: a flag holds as long as that


def keep_to(own: Callable[[], Iterable[Path]] | None) -> None:
    """From now on only what lies in these folders may be named; None lifts it."""
    global _own
    _own = own


def named(text: str, what: str) -> Path:
    """The absolute path that is meant. Raises UserError, naming `what`, for a text that can be no path, or one that
    leads out of the folders that may be named."""
    path = paths.named(text, what)
    check(path, what, text)
    return path


def check(path: Path, what: str, text: str = "") -> None:
    """Raises UserError for a path that leads out of the folders. One that lies there as a link somebody has put there;
    `text` is how it was written."""
    if _own is None:
        return
    own = list(_own())
    written = Path(paths.meant(text)).expanduser()
    places = [path.resolve(), *([written] if written.is_absolute() and ".." not in written.parts else [])]
    if any(place.is_relative_to(folder) for place in places for one in own for folder in (one, one.resolve())):
        return
    raise UserError(
        f"{what}: {path} lies outside of the WebUI's folders, and the WebUI was started with {FLAG}; name a place in "
        f"{own[0]}."
    )


def check_settings(
    wanted: Mapping[str, object], before: Callable[[], Mapping[str, object]], is_path: Callable[[str], bool]
) -> None:
    """The same for settings, of which those that are as they were before may stay."""
    own = before() if _own else {}
    for key, value in wanted.items() if _own else ():
        if isinstance(value, str) and value.strip() and value != own.get(key) and is_path(key):
            named(value, key)
