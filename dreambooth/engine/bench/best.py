"""Whether pictures that are held out, or mirror images, tell when a run is best: the miniature is taught the demo's
subject for far too long, a result is kept at each measure, and what these results draw is measured too, which no run
knows of.

What has been measured is kept in a file; called again, the bench goes on where it was.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from dreambooth.core import project, settings, validation
from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic
from dreambooth.core.install_paths import MINIATURE, PROJECT
from dreambooth.core.job_folder import Job
from dreambooth.core.job_list import new_run
from dreambooth.core.project import Folders
from dreambooth.core.validation import Measure
from dreambooth.engine.bench import best_plot
from dreambooth.engine.bench.sweep import RECIPES
from dreambooth.engine.generate import load
from dreambooth.engine.miniature import measure, world
from dreambooth.engine.process.listener import asked_to_end

SEEDS = (1, 2)
LEARNED, HELD_OUT = 5, 1  # pictures
EPOCHS, EVERY = 300, 20
WORK = "dreambooth-best"  # in the folder that a person names, which may hold models of his own
DRAWN = 16  # pictures of each kind, of each result

_LONG = {
    "concepts.0.held_out": HELD_OUT,
    "intervals.num_train_epochs": EPOCHS,
    "intervals.validate_every": EVERY,
    "intervals.save_model_every": EVERY,
    "learning.scheduler": "constant",
}
_PREDICTED = {"concepts.0.class_mode": "prediction"}
_ALONE = {"concepts.0.class_mode": "off"}
_MIRRORED = {"concepts.0.held_out": 0, "intervals.validate_mirrored": True}
RUNS = {
    "LoRA, class by prediction": {**RECIPES["LoRA"], **_LONG, **_PREDICTED},
    "LoRA, no class": {**RECIPES["LoRA"], **_LONG, **_ALONE},
    "full, class pictures": {**RECIPES["full"], **_LONG},
    "LoRA, class by prediction, mirror images": {**RECIPES["LoRA"], **_LONG, **_PREDICTED, **_MIRRORED},
    "LoRA, no class, mirror images": {**RECIPES["LoRA"], **_LONG, **_ALONE, **_MIRRORED},
}

Row = dict[str, Any]


def run(job: Job) -> dict[str, Any]:
    """Measures each run with each seed in the folder `out` of job.json. Writes best.json and the plot best.svg there.
    Raises UserError when asked to stop; what was measured stays."""
    wanted = job.read()
    out = Path(wanted["out"])
    out.mkdir(parents=True, exist_ok=True)
    file = out / "best.json"
    taken: dict[str, list[Row]] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    todo = [(name, seed) for seed in wanted.get("seeds") or SEEDS for name in wanted.get("runs") or RUNS]
    for number, (name, seed) in enumerate(todo):
        if asked_to_end(job):
            raise UserError(f"Stopped as asked; what was measured is in {file}, and the bench goes on there.")
        job.report("stage", name=name, done=number, total=len(todo))
        if (key := f"{name}, seed {seed}") not in taken:
            taken[key] = _course(out / WORK / "models", RUNS[name], seed)
            atomic.write_text(file, json.dumps(taken, indent=1))
    shutil.rmtree(out / WORK, ignore_errors=True)
    moments = {name: best_of(rows)["images"] for name, rows in taken.items()}
    (out / "best.svg").write_text(best_plot.draw(taken, moments), encoding="utf-8")
    return {"rows": [summary(name, rows) for name, rows in taken.items()], "plot": str(out / "best.svg")}


def summary(name: str, rows: list[Row]) -> Row:
    """What a run's results draw at the moment that it calls its best, at its end, and at the best of all moments."""
    at = {"best": best_of(rows), "end": rows[-1]}
    at["highest"] = max(rows, key=_worth)
    found: Row = {"name": name}
    for moment, row in at.items():
        found[f"{moment}_images"], found[f"{moment}_worth"] = row["images"], _worth(row)
    return found


def best_of(rows: list[Row]) -> Row:
    """The row that the run calls its best."""
    found = validation.best([_measure(row) for row in rows])
    return next(row for row in rows if _measure(row) == found)


def _measure(row: Row) -> Measure:
    return Measure(**{field.name: row[field.name] for field in fields(Measure)})


def _worth(row: Row) -> float:
    """How like the subject its pictures are, on other backgrounds than it was learned on."""
    return float(row["likeness_on_backgrounds"])


def _course(models: Path, flat: dict[str, Any], seed: int) -> list[Row]:
    """A row for each result of a run: what was measured when it was written, and what it draws."""
    shutil.rmtree(models, ignore_errors=True)
    folders, pictures = Folders(models), models / "pictures"
    star = project.create(folders, "star", MINIATURE)
    _draw_subject(pictures, LEARNED + flat["concepts.0.held_out"], seed)
    own = {"concepts.0.instance_data_dir": str(pictures), "general.seed": seed}
    job = new_run(folders, star, settings.parse({**star.settings(), **flat, **own}))
    command = [sys.executable, "-m", "dreambooth.engine", str(job.folder)]
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True)
    story = job.story()
    files = {event["images"]: event["path"] for event in story.saved}
    rows = []
    for one in story.measures:
        if path := files.get(one.images):
            figures = measure.measure(load(star, path), DRAWN)
            rows.append({**asdict(one), **figures})
    return rows


def _draw_subject(folder: Path, count: int, seed: int) -> None:
    """Pictures that are the seed's own, each with its caption."""
    folder.mkdir(parents=True)
    for number, scene in enumerate(world.subject_scenes(count, seed)):
        world.draw_subject(scene).save(folder / f"{number}.png")
        words = f"sks {world.SUBJECT_CLASS} on a {scene.background} background"
        (folder / f"{number}.txt").write_text(words, encoding="utf-8")
