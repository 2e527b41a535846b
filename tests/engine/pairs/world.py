"""What rows are run with: very small models of four kinds, pictures of unlike shapes, and LoRA files to go on from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from PIL import Image

from dreambooth.core.install_paths import SUBJECT_PICTURES
from dreambooth.core.project import Project
from tests.engine.pairs.values import (
    BASE,
    FAMILY,
    OF_CLASS,
    ONE,
    SHAPES,
    START,
    START_WITH_TEXT,
    START_WORD,
    Row,
    settings_of,
)
from tests.engine.runs import LORA, saved, tiny_project, train

STARTS: dict[str, dict[str, Any]] = {
    START: {"lora.layers": "convolutions", "lora.alpha": 1.0, "lora.conv_rank": 3},
    START_WITH_TEXT: {"lora.kind": "loha", "tuning.text_encoder_ratio": 1.0},
    START_WORD: {"general.method": "embedding", "concepts.0.instance_token": "sks"},
}


class World:
    """The models and the files, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._projects: dict[str, Project] = {}
        self._starts: dict[tuple[str, str], Path] = {}
        self._folders = {
            SHAPES: _shapes(folder / "shapes"),
            ONE: _one(folder / "one"),
            OF_CLASS: folder / "class",
        }

    def project(self, row: Row) -> Project:
        kind = row[FAMILY]
        if kind not in self._projects:
            self._projects[kind] = tiny_project(self.folder / kind, kind)
        return self._projects[kind]

    def settings(self, row: Row) -> dict[str, Any]:
        """The row's settings with folders and files in place of their names."""
        flat = settings_of(row)
        for rate in ("learning.learning_rate", "learning.lora_learning_rate"):
            if row["optimizer.name"] == "came" and row[rate] == BASE[rate]:
                flat[rate] /= 10  # its first steps are ten times as long as others'
        if row["pictures.no_upscale"] and row["pictures.bucket_step"] == 32 and not row["pictures.buckets"]:
            flat["pictures.bucket_step"] = 8  # a square of 32 leaves a very small UNet's middle one value to normalise
        if OF_CLASS in flat.values():  # anew, as a run may fill it up
            shutil.rmtree(self._folders[OF_CLASS], ignore_errors=True)
            _class(self._folders[OF_CLASS])
        return {key: self._there(row, value) if _is_name(value) else value for key, value in flat.items()}

    def _there(self, row: Row, name: str) -> str:
        return str(self._folders[name] if name in self._folders else self._start(row, name))

    def _start(self, row: Row, name: str) -> Path:
        if (row[FAMILY], name) not in self._starts:
            job = train(self.project(row), **{**LORA, **STARTS[name], "intervals.max_train_steps": 2})
            self._starts[row[FAMILY], name] = saved(job)[-1]
        return self._starts[row[FAMILY], name]


def _is_name(value: Any) -> bool:
    return value in (SHAPES, ONE, OF_CLASS, START, START_WITH_TEXT, START_WORD)


def _star() -> Image.Image:
    return Image.open(sorted(SUBJECT_PICTURES.glob("*.png"))[0]).convert("RGB")


def _spot(size: tuple[int, int]) -> Image.Image:
    """A mask that leaves a part white."""
    grey = Image.new("L", size, 0)
    grey.paste(255, (size[0] // 4, size[1] // 4, size[0] // 2, size[1] // 2))
    return grey


def _shapes(folder: Path) -> Path:
    """A wide picture, a high one with a mask, a square one with transparency and a small one; each with its words."""
    folder.mkdir(parents=True)
    _star().resize((192, 128)).save(folder / "sks star, red, wide.png")
    _star().resize((128, 192)).save(folder / "high.jpg")
    (folder / "high.txt").write_text("sks star, high, on grass\nred star, high")
    _spot((128, 192)).save(folder / "high-mask.png")
    clear = _star().resize((160, 160))
    clear.putalpha(_spot((160, 160)))
    clear.save(folder / "sks star, square.png")
    _star().resize((72, 56)).save(folder / "sks star, small.png")
    return folder


def _one(folder: Path) -> Path:
    folder.mkdir(parents=True)
    _star().resize((120, 100)).save(folder / "sks star alone.png")
    _spot((120, 100)).save(folder / "sks star alone-mask.png")
    return folder


def _class(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number, size in enumerate([(96, 64), (64, 96)]):
        _star().transpose(Image.Transpose.ROTATE_180).resize(size).save(folder / f"{number}.png")
