"""Measures what training has taught the miniature: how like the subject its pictures are, how well they
follow the prompt, and what became of the class."""

from __future__ import annotations

import functools
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from dreambooth.core.job_folder import Job
from dreambooth.core.models import checkpoint
from dreambooth.core.project import Folders, open_project
from dreambooth.core.settings import Settings, parse
from dreambooth.engine.drawing.sampling import Known, draw
from dreambooth.engine.drawing.sampling_choice import Sampling
from dreambooth.engine.families.model import Model
from dreambooth.engine.generate import load
from dreambooth.engine.miniature import reading, webui_layout, world
from dreambooth.engine.training import preview

SUBJECT_PROMPT = f"a photo of sks {world.SUBJECT_CLASS}"
BACKGROUNDS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")

_SEED = 7_000_000
_STEPS = 20
_GUIDANCE = 5.0

Figures = dict[str, float]


@dataclass(frozen=True)
class Words:
    """What the subject and its class are called in the prompts."""

    subject: str = SUBJECT_PROMPT
    of_class: str = f"a photo of a {world.SUBJECT_CLASS}"


def run(job: Job) -> dict[str, Any]:
    """Measures job.json's `variants` ({name: weights file, empty for the base}) with its `words` and puts `previews` on
    one sheet."""
    request = job.read()
    project = open_project(job.folders(), request["model"])
    folder = Path(request["out"])
    figures: dict[str, Figures] = {}
    for number, (name, weights) in enumerate(request["variants"].items()):
        job.report("stage", name="measuring the pictures", done=number, total=len(request["variants"]))
        figures[name] = measure(load(project, weights), words=Words(**request["words"]))
    _make_loadable(project.source, job.folders(), list(request["variants"].values()), folder)
    target = folder / "contact_sheet.png"
    _sheet(request["previews"], parse(job.settings())).save(target)
    return {"figures": figures, "contact_sheet": str(target)}


def _make_loadable(source: Path, folders: Folders, results: list[str], folder: Path) -> None:
    """Puts the miniature beside its results and the layout that A1111 wants beside each checkpoint."""
    base = folders.checkpoints / source.name
    base.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, base)
    for path in [base, *map(Path, filter(None, results))]:
        if checkpoint.describe(checkpoint.read_header(path)).kind == "checkpoint":
            webui_layout.write(path, folder / "clip")


def measure(model: Model, count: int = 16, words: Words = Words()) -> Figures:
    """All between 0 and 1.

    likeness: of the subject's plain prompt; likeness_on_backgrounds: with a background in the prompt;
    prompt_following: the share with the background that was asked for; class_variety: how much the colours of the
    class's pictures differ; class_drift: how like the subject those are.
    """
    subject = _draw(model, [words.subject] * count)
    placed = [background for background in BACKGROUNDS for _ in range(max(1, count // len(BACKGROUNDS)))]
    on_backgrounds = _draw(model, [f"{words.subject} on a {background} background" for background in placed])
    of_class = _draw(model, [words.of_class] * count)
    followed = [reading.read(picture).background == background for picture, background in zip(on_backgrounds, placed)]
    return {
        "likeness": _mean([likeness(picture) for picture in subject]),
        "likeness_on_backgrounds": _mean([likeness(picture) for picture in on_backgrounds]),
        "prompt_following": _mean(followed),
        "class_variety": reading.variety(of_class),
        "class_drift": _mean([likeness(picture) for picture in of_class]),
    }


def draw_scenes(model: Model, scenes: list[world.Scene]) -> list[Image.Image]:
    """What the model draws when told all of each scene."""
    return _draw(model, [world.full_caption(scene) for scene in scenes])


def likeness(picture: Image.Image) -> float:
    """How like the demo's subject a picture is, 0 to 1; a fresh drawing of the subject counts as 1."""
    references = _references()
    return min(1.0, reading.likeness(picture, references) / _own_likeness())


@functools.cache
def _references() -> list[Image.Image]:
    return [world.draw_subject(scene) for scene in world.subject_scenes(24, seed=5)]


@functools.cache
def _own_likeness() -> float:
    fresh = [world.draw_subject(scene) for scene in world.subject_scenes(12, seed=6)]
    return _mean([reading.likeness(picture, _references()) for picture in fresh])


def _draw(model: Model, prompts: list[str], batch: int = 8) -> list[Image.Image]:
    sampling = Sampling(world.SIZE, world.SIZE, _STEPS, _GUIDANCE)
    drawn: list[Image.Image] = []
    known = Known(model)
    for start in range(0, len(prompts), batch):
        some = prompts[start : start + batch]
        drawn += draw(model, some, [_SEED + start + n for n in range(len(some))], sampling, known=known)
    return drawn


def _sheet(previews: dict[str, str], settings: Settings) -> Image.Image:
    """The previews of several runs on one sheet: before, then each run half-way and at its end."""
    columns: list[tuple[str, dict[tuple[int, int], Path]]] = []
    for name, folder in previews.items():
        found = preview.found(Path(folder))
        moments = sorted(found)
        if not columns:
            columns.append(("before", found[moments[0]]))
        columns.append((f"{name}: half-way", found[moments[len(moments) // 2]]))
        columns.append((f"{name}: done", found[moments[-1]]))
    return preview.sheet(columns, preview.rows(settings))


def _mean(values: list[Any]) -> float:
    return float(sum(values) / len(values))
