"""What a model's `model.json` says: its checkpoint, what that is and how it is read, and where the model lay."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic, file_names
from dreambooth.core.files.json_file import read_object
from dreambooth.core.models import checkpoint
from dreambooth.core.models.load_overrides import Origin
from dreambooth.core.schema import from_flat, to_flat

FILE = "model.json"


@dataclass(frozen=True)
class Record:
    """What the file says, checked."""

    source: Path  # the checkpoint
    origin: Origin
    about: dict[str, Any]  # what the checkpoint is, as it was found out when the model was created
    former: tuple[str, ...]  # names that the model had before


def is_absolute_path(value: Any) -> TypeGuard[str]:
    """Whether a value of a file names a place by its whole path. A relative one would lie wherever the program was
    started."""
    return isinstance(value, str) and "\x00" not in value and Path(value).is_absolute()


def about_source(source: Path, origin: Origin) -> checkpoint.About:
    """What a checkpoint is, from its header. Raises UserError for one that cannot be trained from."""
    about = checkpoint.describe(checkpoint.read_header(source), origin)
    if about.reason:
        raise UserError(f"{source}: {about.reason}.")
    return about


def write(folder: Path, place: Path, source: Path, origin: Origin, about: checkpoint.About) -> None:
    """Writes the file of a new model into `folder`, which is to become `place`. Raises OSError."""
    content = {
        "version": 1,
        "folder": str(place),
        "source": str(source),
        "origin": to_flat(origin),
        "created": time.time(),
        "about": about.as_json(),
    }
    atomic.write_text(folder / FILE, json.dumps(content, indent=1))


def read(folder: Path, checkpoints: Path) -> Record:
    """What the file in a model's folder says. A checkpoint that is gone from its place is the one of the same name
    among `checkpoints`, if there is one. Raises UserError for a file that is damaged or gone."""
    content = read_object(folder / FILE, "create the model again")
    try:
        source, about = _existing(_path(content["source"]), checkpoints), _about(content["about"])
        return Record(source, from_flat(Origin, dict(content.get("origin", {}))), about, _former_names(content))
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{folder / FILE}: the file is damaged; create the model again.") from None


def place_of(folder: Path) -> Path | None:
    """Where the model's folder lay when that was last written; None where the file does not say so. Raises UserError
    if it is damaged."""
    place = read_object(folder / FILE).get("folder")
    return Path(place) if is_absolute_path(place) else None


def note_place(folder: Path, place: Path, *, is_copy: bool = False) -> None:
    """Has the model in a folder say that it lies in `place`, by which it is known later that it was moved, and what it
    was called before, unless it is another one's copy. Raises UserError if it is damaged, and OSError."""
    content = read_object(folder / FILE)
    before = [Path(content["folder"]).name] if is_absolute_path(content.get("folder")) else []
    names = [] if is_copy else list(dict.fromkeys([*_former_names(content), *before]))
    former = [name for name in names if name != place.name]
    _update(folder, {"folder": str(place), **({"former": former} if former or "former" in content else {})})


def remake(folder: Path, source: Path, origin: Origin) -> None:
    """Has the model in a folder be made from another checkpoint from now on, read as `origin` says. Raises UserError
    for one that cannot be trained from, or where that cannot be written down."""
    about = about_source(source, origin)
    try:
        _update(folder, {"source": str(source), "origin": to_flat(origin), "about": about.as_json()})
    except OSError as error:
        raise UserError(f"{folder}: the model's folder cannot be written ({error.strerror}).") from None


def _update(folder: Path, changes: dict[str, Any]) -> None:
    content = {**read_object(folder / FILE), **changes}
    atomic.write_text(folder / FILE, json.dumps(content, indent=1))


def _path(value: Any) -> Path:
    """Raises ValueError for what no file system can name."""
    if not isinstance(value, str) or not value or "\x00" in value:
        raise ValueError("no path")
    value.encode(errors="surrogateescape")
    return Path(value)


def _existing(source: Path, checkpoints: Path) -> Path:
    namesake = checkpoints / source.name
    try:
        return namesake if source.name.strip(".") and not source.exists() and namesake.exists() else source
    except OSError:  # a name that no disk takes, or a disk that is gone
        return source


def _about(value: Any) -> dict[str, Any]:
    """Raises ValueError, KeyError or TypeError for what does not say what a checkpoint is."""
    texts = [value[key] for key in ("family", "prediction_type")]
    side, zero = value["resolution"], value["zero_terminal_snr"]
    if not all(isinstance(text, str) for text in texts) or not isinstance(zero, bool):
        raise ValueError("nothing about a model")
    if isinstance(side, bool) or not isinstance(side, int) or not 0 < side <= 2**16:
        raise ValueError("no resolution")
    return dict(value)


def _former_names(content: dict[str, Any]) -> tuple[str, ...]:
    names = content.get("former")
    if not isinstance(names, list):
        return ()
    return tuple(name for name in names if isinstance(name, str) and file_names.is_sound(name))
