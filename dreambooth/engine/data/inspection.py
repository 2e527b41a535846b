"""Inspecting each picture before anything runs: whether it can be read, its size, and whether it is a duplicate."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dreambooth.core import focal_point
from dreambooth.core.errors import UserError
from dreambooth.core.picture_files import is_hidden
from dreambooth.core.picture_opening import open_picture
from dreambooth.engine.data import decoding, prefetch

THUMBNAIL = 256  # pixels along the longer side
_SAME_BITS = 10  # of 256 that may differ between twins
_SAME_COLOUR = 6  # of 255, the mean difference of colours between twins
_NO_PICTURES = {".txt", ".caption", ".json", ".jsonl", ".csv", ".npz", ".npy", ".safetensors", ".toml", ".yaml", ".yml"}
_NO_PICTURES |= {".md", ".ini", ".db", ".log", ".zip", focal_point.SUFFIX}


@dataclass(frozen=True)
class Inspection:
    """What is known of a picture file. With an `error` the rest is empty."""

    path: Path
    width: int = 0  # pixels, upright
    height: int = 0
    frames: int = 1
    thumbnail: bytes = b""  # a JPEG
    edges: bytes = b""  # a difference hash of 256 bits: which of two neighbours is brighter
    colours: bytes = b""  # 8x8 RGB
    error: str = ""

    def small(self) -> Image.Image:
        return open_picture(io.BytesIO(self.thumbnail))


def inspect_all(paths: Iterable[Path], on_look: Callable[[int], None] = lambda done: None) -> list[Inspection]:
    """Inspects each file, several at a time; of each only a thumbnail is kept. `on_look(done)` is called after each."""
    inspected = []
    for inspection in prefetch.in_order(inspect, paths, workers=prefetch.FEW):
        inspected.append(inspection)
        on_look(len(inspected))
    return inspected


def inspect(path: Path) -> Inspection:
    """Reads the whole file, so that damage at its end is found as well."""
    try:
        width, height, frames = decoding.measure(path)
        small = decoding.decode(path, smallest=THUMBNAIL)
    except UserError as error:
        return Inspection(path, error=error.problems[0])
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    written = io.BytesIO()
    small.save(written, "JPEG", quality=85)
    grey = np.asarray(small.convert("L").resize((17, 16), Image.Resampling.BOX), dtype=int)
    edges = np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes()
    colours = small.resize((8, 8), Image.Resampling.BOX).tobytes()
    return Inspection(path, width, height, frames, written.getvalue(), edges, colours)


def twins(looks: list[Inspection]) -> dict[int, int]:
    """{number of a picture: number of an earlier one that looks the same}.

    Two pictures look the same if their difference hashes and their colours at 8x8 are nearly equal.
    """
    readable = [number for number, seen in enumerate(looks) if not seen.error]
    if not readable:
        return {}
    edges = np.array([np.frombuffer(looks[n].edges, dtype=np.uint64) for n in readable])
    colours = np.array([np.frombuffer(looks[n].colours, dtype=np.uint8) for n in readable]).astype(np.int16)
    found: dict[int, int] = {}
    for later in range(1, len(readable)):
        differing = np.bitwise_count(edges[:later] ^ edges[later]).sum(1)
        for earlier in np.flatnonzero(differing <= _SAME_BITS):
            if np.abs(colours[earlier] - colours[later]).mean() <= _SAME_COLOUR:
                found[readable[later]] = readable[int(earlier)]
                break
    return found


def strangers(folder: Path) -> list[Path]:
    """Files of a folder of pictures that are no pictures, apart from captions, lists and the like, and hidden files."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() not in _NO_PICTURES | set(decoding.SUFFIXES)
        and path.is_file()
        and not any(map(is_hidden, path.relative_to(folder).parts))
    )
