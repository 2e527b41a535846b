"""What is kept of a concept's pictures: the frame over each, and the button behind which a person chooses it, for which
javascript/dreambooth_crop.js has all that it draws in `data-db-crop`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from html import escape
from pathlib import Path

from dreambooth.core import crops, focal_point, settings
from dreambooth.core.buckets import Bucket, Grid, grid
from dreambooth.core.crops import Box
from dreambooth.core.errors import UserError
from dreambooth.core.project import Project
from dreambooth.core.settings import Settings
from dreambooth.ui.page.fragments import sealed
from dreambooth.ui.page.short_job_view import newest_errand

_LARGE = 768  # pixels along the longer side of the picture in which one chooses
_NEARLY_ALL = 0.998  # of a picture: no frame is drawn around that


@dataclass(frozen=True)
class Framed:
    """One picture's: what is drawn over it, the button, and what is wrong with what was chosen."""

    frame: str
    button: str
    problems: list[str]


@dataclass(frozen=True)
class Crops:
    """What pictures are cropped by; `checked` is where the last check has put the smart ones."""

    own: Settings
    shapes: Grid
    checked: dict[str, Box]

    @classmethod
    def of(cls, project: Project, own: Settings) -> Crops:
        """Raises UserError for buckets that cannot be."""
        shapes = grid(own.pictures, own.general.resolution or project.resolution)
        return cls(own, shapes, _smart_crops_of_last_check(project, own))

    def framed(self, folder: Path, name: str, size: tuple[int, int], pictures: str, large: str) -> Framed:
        """`name` is the picture's in its folder; `pictures` the concept's address and `large` that of the picture."""
        path = folder / name
        bucket, problems = self.shapes.bucket(*size), list[str]()
        try:
            point = focal_point.read(path)
        except UserError as error:
            file = focal_point.beside(path)
            point, problems = None, [one.replace(str(file), file.name) for one in error.problems]
        choice, seed = self.own.pictures, self.own.general.seed
        automatic = crops.first(path.name, size, bucket, choice, seed, None) or self.checked.get(str(path))
        box = crops.first(path.name, size, bucket, choice, seed, point) if point else automatic
        frame = _frame(box, size, bucket) if box and not problems else ""
        if not crops.is_a_choice(size, bucket) and not point and not problems:
            return Framed(frame, "", problems)
        about = {
            "file": name,
            "folder": str(folder),
            "address": f"{pictures}/crop",
            "picture": sealed(f"{large}&side={_LARGE}"),
            "size": size,
            "window": crops.window(size, bucket),
            "most": crops.most_zoom(size, bucket),
            "bucket": str(bucket),
            "automatic": automatic,
            "words": self._automatic(known=automatic is not None),
            "point": point.as_json() if point else None,
            "broken": bool(problems),
        }
        by_hand = ' class="db-crop-open db-by-hand"' if point else ' class="db-crop-open"'
        words = f"Crop {escape(name)}{', chosen by hand' if point else ''}"
        button = (
            f'<button type="button"{by_hand} title="{words}" aria-label="{words}" '
            f'data-db-crop="{escape(json.dumps(about))}">Crop</button>'
        )
        return Framed(frame, button, problems)

    def _automatic(self, *, known: bool) -> str:
        """What is kept of a picture for which nothing was chosen."""
        if self.own.pictures.crop == "random":
            return "Automatic: any part, another one in each variant; this is the first."
        if self.own.pictures.crop == "centre":
            return "Automatic: the middle."
        return "Automatic: what stands out." if known else "Automatic: what stands out, which the check will show."


def _frame(box: Box, size: tuple[int, int], bucket: Bucket) -> str:
    """What is cut off, dimmed."""
    left, top = box[0] / size[0] * 100, box[1] / size[1] * 100
    width, height = (box[2] - box[0]) / size[0] * 100, (box[3] - box[1]) / size[1] * 100
    if width * height >= 100 * 100 * _NEARLY_ALL:
        return ""
    place = f"left:{left:.2f}%;top:{top:.2f}%;width:{width:.2f}%;height:{height:.2f}%"
    return f'<i title="trained at {bucket}" style="{place}"></i>'


def _smart_crops_of_last_check(project: Project, own: Settings) -> dict[str, Box]:
    """Where the last check cut each picture by itself; empty where the cut was chosen otherwise then."""
    job = newest_errand(project, "check") if own.pictures.crop == "smart" else None
    history = job.story() if job else None
    if job is None or history is None or history.status != "done" or history.ending is None:
        return {}
    try:
        then = settings.parse(job.settings())
    except UserError:  # it is damaged, and tells nothing
        return {}
    if then.pictures != own.pictures or then.general.resolution != own.general.resolution:
        return {}
    rows = history.ending.get("pictures", [])
    try:
        return {one["path"]: _box(*one["crops"][0]) for one in rows if one.get("crops") and not one.get("chosen")}
    except (AttributeError, LookupError, TypeError, ValueError):  # it is damaged, too
        return {}


def _box(left: float, top: float, right: float, bottom: float) -> Box:
    """Raises ValueError or TypeError for what is none."""
    return float(left), float(top), float(right), float(bottom)
