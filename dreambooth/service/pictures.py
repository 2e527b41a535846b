"""Pictures on the disk: lists of them with captions and crops, and files that are served, confined to their folders."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

from dreambooth.core import captions, focal_point, picture_files, settings
from dreambooth.core.captions import PICTURES
from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic, file_names, paths
from dreambooth.core.focal_point import FocalPoint
from dreambooth.core.project import Project

MOST_LISTED = 500
MOST_WALKED = 20_000
MOST_LOOKED_AT = 60_000  # files of any kind; somebody may have named a whole disk


def concept_folder(opened: Project, concept: int, kind: str) -> Path:
    """The folder of a concept's pictures: kind is instance or class. Raises UserError if there is none."""
    concepts = settings.parse(opened.settings()).concepts
    if not 0 <= concept < len(concepts):
        raise UserError(
            f"concept: the model {opened.name!r} has no concept {concept} (there: 0 to {len(concepts) - 1})."
        )
    if kind not in ("instance", "class"):
        raise UserError(f"kind: {kind!r} is neither instance nor class.")
    key = f"{kind}_data_dir"
    named = getattr(concepts[concept], key).strip()
    if not named:
        if kind == "class":
            return opened.class_pictures
        raise UserError(f"concepts.{concept}.{key}: it is empty; name the folder of the pictures.")
    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise UserError(f"concepts.{concept}.{key}: {paths.no_folder(folder)}")
    return folder


def check_meant(folder: Path, concept: int, meant: str) -> None:
    """Raises UserError where a request means another folder than the concept's: concepts have other numbers when one
    was removed, and a picture there may have the same name."""
    if meant and Path(meant) != folder:
        raise UserError(
            f"folder: the pictures of concept {concept} lie in {folder} by now, not in {meant[:300]}, so nothing was "
            "changed; look at them again."
        )


def listing(folder: Path, offset: int = 0, limit: int = 100) -> dict[str, Any]:
    """Pictures in a folder and the folders in it, by name; `limit` of them from `offset` on, with their captions and
    the crops that were chosen."""
    limit = max(0, min(limit, MOST_LISTED))
    found = names(folder)
    shown = found[max(0, offset) : max(0, offset) + limit]
    return {
        "folder": str(folder),
        "total": len(found),
        "cut": len(found) >= MOST_WALKED,
        "pictures": [_entry(folder, name) for name in shown],
    }


def names(folder: Path) -> list[str]:
    """The pictures of a folder and of the folders in it as training finds them, as relative paths, by name; at most
    MOST_WALKED."""
    return picture_files.names(folder, MOST_LOOKED_AT)[:MOST_WALKED]


def caption(picture: Path) -> str | None:
    """The text of a picture's caption file; None where it has none."""
    file = captions.beside(picture)
    return file.read_text(encoding="utf-8-sig", errors="replace") if file else None


def write_point(picture: Path, point: FocalPoint | None) -> None:
    """Writes down where a person wants a picture cropped; with None it is removed, and the crop is automatic again.

    Raises UserError if it cannot be written.
    """
    file = focal_point.beside(picture)
    try:
        if point is None:
            atomic.remove(file)
        else:
            atomic.write_text(file, focal_point.text(point))
    except OSError as error:
        raise UserError(f"{file}: the crop cannot be written ({error.strerror}).") from None


def _entry(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    try:
        about, words = path.stat(), caption(path)
    except OSError as error:
        return {"name": name, "problem": error.strerror}
    shown = words if words is None else words[:2000]
    entry = {"name": name, "bytes": about.st_size, "changed": about.st_mtime, "caption": shown}
    try:
        point = focal_point.read(path)
    except UserError as error:
        return {**entry, "crop": None, "problem": str(error)}
    return {**entry, "crop": point.as_json() if point else None}


def at(place: Path, what: str) -> list[Path]:
    """The picture that is named, or all of a folder. Raises UserError, naming `what`, where there is none."""
    found = picture_files.find(place) if place.is_dir() else []
    if place.is_file() and place.suffix.lower() in PICTURES:
        found = [place]
    if not place.exists():
        raise UserError(f"{what}: there is no file or folder {place}.")
    if not found:
        raise UserError(
            f"{what}: {place} is neither a picture nor a folder with some; name one ({', '.join(PICTURES)})."
        )
    return found


def confined(folder: Path, name: str) -> Path:
    """The picture `name` in `folder`, where its caption lies beside it: a link to another picture stays one. Raises
    UserError for a name that leads out of the folder, or is no picture's."""
    refused = UserError(f"{name[:200]!r} is no picture in {folder}.")
    if not name or "\x00" in name or Path(name).suffix.lower() not in PICTURES:
        raise refused
    path = folder / name
    try:
        own = folder.resolve()
        inside = path.resolve().is_relative_to(own) and path.parent.resolve().is_relative_to(own) and path.is_file()
    except (OSError, ValueError, RuntimeError):
        raise refused from None
    if not inside:
        raise refused
    return path


def keep(picture: Any, folder: Path, seed: int, words: str) -> Path:
    """Writes one of Pillow's pictures as the engine names those that it draws, with how it was drawn inside, as the
    WebUI reads it. Raises UserError if it cannot be written."""
    from PIL.PngImagePlugin import PngInfo

    info, content = PngInfo(), BytesIO()
    info.add_text("parameters", words)
    picture.save(content, "png", pnginfo=info)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = file_names.of_drawn(folder, seed)
        atomic.write_bytes(path, content.getvalue())
    except OSError as error:
        raise UserError(
            f"{folder}: the picture cannot be written ({error.strerror}); those before it are kept."
        ) from None
    return path
