"""Routes of pictures: those of concepts, with their captions, and those that were drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import Response
from fastapi.responses import FileResponse

from dreambooth.core import captions
from dreambooth.core.files import confinement
from dreambooth.core.focal_point import FocalPoint
from dreambooth.service import pictures, thumbnails, uploads
from dreambooth.service.routes.base import Answer, Route, Routes, only, text

# Before 3.13 Python knows these only as far as the system tells it, and a browser shows a file that is no picture as
# text.
_KINDS = {".webp": "image/webp", ".avif": "image/avif"}


class Pictures(Routes):
    """Pictures of concepts, and those that runs have drawn. `side` asks for a thumbnail of at most so many pixels."""

    def table(self) -> list[Route]:
        return [
            ("GET", "/models/{name}/concepts/{concept}/pictures", self.listing),
            ("GET", "/models/{name}/concepts/{concept}/picture", self.picture),
            ("PUT", "/models/{name}/concepts/{concept}/caption", self.write_caption),
            ("PUT", "/models/{name}/concepts/{concept}/crop", self.crop),
            ("DELETE", "/models/{name}/concepts/{concept}/crop", self.crop_automatically),
            ("POST", "/models/{name}/concepts/{concept}/remove", self.remove),
            ("GET", "/models/{name}/picture", self.drawn),
        ]

    def listing(self, name: str, concept: int, kind: str = "instance", offset: int = 0, limit: int = 100) -> Answer:
        """The pictures of a concept, with their captions and the crops chosen for them; `kind` is instance or class."""
        return pictures.listing(pictures.concept_folder(self.open(name), concept, kind), offset, limit)

    def picture(
        self, name: str, concept: int, file: str, kind: str = "instance", side: int = 0, changed: str = ""
    ) -> Response:
        """A picture of a concept. `changed` is anything that differs when the file does: then it is kept for a day."""
        return _picture(pictures.concept_folder(self.open(name), concept, kind), file, side, changed)

    def write_caption(self, name: str, concept: int, body: dict[str, Any]) -> Answer:
        """Writes the caption `text` beside the picture `file`; without a word the file's name is the caption again.
        Here and below, a `folder` may say which one is meant: refused where the concept has another by now."""
        only(body, "file", "text", "folder", needed="text")
        path = pictures.confined(self._writable(name, concept, body), text(body, "file"))
        captions.write(path, text(body, "text", optional=True))
        return {"file": str(body["file"]), "caption": pictures.caption(path)}

    def crop(self, name: str, concept: int, body: dict[str, Any]) -> Answer:
        """Crops the picture `file` around a point, `x` of its width and `y` of its height (0 to 1) from its upper left
        corner, as far as the picture allows; with `zoom` so many times tighter, up to where it would be enlarged. A
        small file beside the picture keeps that."""
        only(body, "file", "x", "y", "zoom", "folder", needed="file")
        path = pictures.confined(self._writable(name, concept, body), text(body, "file"))
        point = FocalPoint.of({key: value for key, value in body.items() if key not in ("file", "folder")})
        pictures.write_point(path, point)
        return {"file": str(body["file"]), "crop": point.as_json()}

    def crop_automatically(self, name: str, concept: int, file: str, folder: str = "") -> Answer:
        """Forgets the crop that was chosen for the picture `file`; it is automatic again."""
        pictures.write_point(pictures.confined(self._writable(name, concept, {"folder": folder}), file), None)
        return {"file": file, "crop": None}

    def remove(self, name: str, concept: int, body: dict[str, Any]) -> Answer:
        """Moves the picture `file` to the trash, with its caption, crop and mask. Only one that was dropped on the
        page; what lies in a folder of your own stays."""
        opened = self.open(name)
        only(body, "file", "folder", needed="file")
        folder = _meant(pictures.concept_folder(opened, concept, "instance"), concept, body)
        moved = uploads.take_away(self.folders, opened, folder, text(body, "file"))
        return {"file": str(body["file"]), "trash": str(moved)}

    def _writable(self, name: str, concept: int, body: Answer) -> Path:
        """The folder of a concept's pictures, for captions and crops to be written there."""
        folder = _meant(pictures.concept_folder(self.open(name), concept, "instance"), concept, body)
        confinement.check(folder, f"concepts.{concept}.instance_data_dir")
        return folder

    def drawn(self, name: str, file: str, side: int = 0, changed: str = "") -> Response:
        """A picture in the model's own folder: previews, class pictures, sheets, generated ones."""
        return _picture(self.open(name).folder, file, side, changed)


def _meant(folder: Path, concept: int, body: Answer) -> Path:
    """A concept's folder. Raises UserError where the request means another."""
    pictures.check_meant(folder, concept, text(body, "folder", optional=True))
    return folder


def _picture(folder: Path, file: str, side: int, changed: str) -> Response:
    path = pictures.confined(folder, file)
    seconds = 86_400 if changed else 60
    headers = {"Cache-Control": f"private, max-age={seconds}", "X-Content-Type-Options": "nosniff"}
    shown = thumbnails.thumbnail(path, side) if side else thumbnails.whole(path)
    if shown is None:
        return FileResponse(str(path), headers=headers, media_type=_KINDS.get(path.suffix.lower()))
    return Response(shown, media_type="image/jpeg", headers=headers)
