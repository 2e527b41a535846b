"""Where a person wants a picture cropped: the middle of what matters in it. It is kept beside the picture, as a caption
is, so that it goes where the picture goes, and the picture itself stays as it is:

    anna.jpg    anna.focus: {"x": 0.31, "y": 0.22, "zoom": 1.5}

Only what was chosen is written. Without the file the crop is automatic.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth.core.errors import UserError
from dreambooth.core.files import paths

SUFFIX = ".focus"
MOST_ZOOM = 100
_MOST_BYTES = 4_000
_DECIMALS = 4  # a tenth of a pixel of a thousand
_MEANT = {
    "x": "a number from 0 (the left edge) to 1 (the right one)",
    "y": "a number from 0 (the top) to 1 (the bottom)",
    "zoom": f"a number from 1 (as much as there is) to {MOST_ZOOM}",
}


@dataclass(frozen=True)
class FocalPoint:
    """`x` is from 0 at the left edge of the upright picture to 1 at the right one, `y` from the top to the bottom. The
    crop is `zoom` times tighter than the largest one, as far as it need not be enlarged for that."""

    x: float
    y: float
    zoom: float = 1.0

    @classmethod
    def of(cls, given: Mapping[str, Any], places: Mapping[str, str] | None = None) -> FocalPoint:
        """Raises UserError, with a sentence for each number that is missing or none; `places` says where one was given,
        if not under its name."""
        values: dict[str, Any] = {"zoom": 1.0, **given}
        limits = {"x": (0, 1), "y": (0, 1), "zoom": (1, MOST_ZOOM)}
        wrong = [key for key, (low, high) in limits.items() if not _is_within(values.get(key), low, high)]
        if wrong:
            raise UserError(f"{(places or {}).get(key, key)}: it must be {_MEANT[key]}." for key in wrong)
        return cls(*(round(float(values[key]), _DECIMALS) for key in limits))

    def as_json(self) -> dict[str, float]:
        return {"x": self.x, "y": self.y, "zoom": self.zoom}


def _is_within(value: Any, low: float, high: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def beside(picture: Path) -> Path:
    """The file that a picture's point is in, where one was chosen."""
    return picture.with_suffix(SUFFIX)


def read(picture: Path) -> FocalPoint | None:
    """The point that was chosen for a picture; None where the crop is automatic.

    Raises UserError for a file that holds none.
    """
    file = beside(picture)
    if not paths.is_file(file):
        return None
    try:
        with open(file, "rb") as opened:
            found = json.loads(opened.read(_MOST_BYTES).decode("utf-8-sig"))
        if isinstance(found, dict) and not found.keys() - _MEANT.keys():
            return FocalPoint.of(found)
    except OSError as error:
        raise UserError(f"{file}: the crop cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError, UserError):
        pass
    raise UserError(
        f'{file}: it holds no crop such as {{"x": 0.3, "y": 0.5}}; choose the crop anew, or remove the file.'
    )


def text(point: FocalPoint) -> str:
    """What is in the file; a zoom only where one was chosen."""
    kept = point.as_json()
    if point.zoom == 1:
        del kept["zoom"]
    return json.dumps(kept) + "\n"
