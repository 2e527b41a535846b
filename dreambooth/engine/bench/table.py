"""The table that the planner reads, `core/memory/footprint.json`: `python -m dreambooth bench memory` counts it anew.

Of training steps it counts families x what is trained x precision x gradient checkpointing, at a few batches, sizes and
ranks each, and keeps the plane through them, for each moment of a step:

    bytes = a + b batch + c batch x latent pixels + d rank + e batch x latent pixels x rank
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic
from dreambooth.core.files.json_file import read_object
from dreambooth.core.job_folder import Job
from dreambooth.core.models import anatomy
from dreambooth.core.models.families import LATENT_FACTOR
from dreambooth.engine.bench import drawing_footprint, random_model
from dreambooth.engine.bench.footprint import PRECISIONS, SIDES, Point, Step, count, fill, texts
from dreambooth.engine.bench.live_tensors import Live
from dreambooth.engine.bench.versions import COUNTED, versions
from dreambooth.engine.process.listener import asked_to_end

MADE_BY = "python -m dreambooth bench memory --out dreambooth/core/memory/footprint.json"
PARTS = ("families", "drawing", "vae")  # that can be counted each by itself


def run(job: Job) -> dict[str, Any]:
    """Writes the table to the file that job.json names, or a part of it into the table that is there.

    Raises UserError for a part of a table that was counted with other versions.
    """
    asked = job.read()
    path, again = Path(asked["out"]), asked.get("again", "")
    made: dict[str, Any] = {"made_by": MADE_BY, "versions": versions(COUNTED)}
    if again:
        made = read_object(path)
        if made.get("versions") != versions(COUNTED):
            raise UserError(f"{path}: it was counted with other versions than are here; count it all, without --again.")
    made |= {part: _COUNTS[part](job) for part in PARTS if again in ("", part)}
    atomic.write_text(path, as_text(made))
    return {"path": str(path), "steps": sum(len(family["steps"]) for family in made["families"].values())}


def as_text(table: dict[str, Any]) -> str:
    """JSON with a line for each list of numbers."""
    text = json.dumps(table, indent=1)
    return re.sub(r"\[\s+([-\d.,\se]+?)\s+\]", lambda m: "[" + re.sub(r"\s+", " ", m[1]) + "]", text) + "\n"


def _families(job: Job) -> dict[str, Any]:
    """The shape of each family's models, and what their steps and their text encoders hold."""
    families, done, kinds = {}, 0, {family: list(steps(family)) for family in SIDES}
    total = sum(map(len, kinds.values()))
    for family, some in kinds.items():
        rows = {}
        for step in some:
            _stage(job, f"{family} {step.name}", done, total)
            rows[step.name] = row(step)
            done += 1
        families[family] = {**shape(family), "steps": rows, "text": texts(family)}
    return families


def _drawing(job: Job) -> dict[str, Any]:
    """What the UNet's predictions hold while pictures are drawn."""
    found = {}
    for done, family in enumerate(SIDES):
        _stage(job, f"{family} drawing", done, len(SIDES))
        found[family] = drawing_footprint.predictions(family)
    return found


def _stage(job: Job, name: str, done: int, total: int) -> None:
    if asked_to_end(job):
        raise UserError("Stopped as asked; nothing was written.")
    job.report("stage", name=name, done=done, total=total)


def steps(family: str) -> Iterator[Step]:
    """The kinds of steps that are counted: all on SD 1, and on the others what their shape changes most."""
    everything = family == "sd1"
    for checkpointed in (False, True):
        for precision in PRECISIONS if everything else ("mixed", "bf16"):
            yield Step(family, "full", "all", precision, checkpointed)
        yield Step(family, "lora", "transformer", "mixed", checkpointed)
        yield Step(family, "embedding", "none", "mixed", checkpointed)
        if everything:
            yield Step(family, "embedding", "none", "no", checkpointed)
            for layers in ("attention", "convolutions"):
                yield Step(family, "lora", layers, "mixed", checkpointed)
            yield Step(family, "lora", "transformer", "no", checkpointed)
            for kind in ("dora", "loha", "lokr", "oft"):
                yield Step(family, kind, "transformer", "mixed", checkpointed)


def points(step: Step) -> list[Point]:
    side = SIDES[step.family]
    if step.kind in ("full", "embedding"):
        return [Point(1, side), Point(2, side), Point(1, side // 2)]
    return [Point(1, side, 4), Point(1, side, 64), Point(2, side, 16), Point(1, side // 2, 4), Point(1, side // 2, 64)]


def row(step: Step) -> dict[str, Any]:
    """What one kind of step holds: for each moment of the backward pass the plane through what was counted. Where no
    weight has a gradient it is one moment."""
    where = points(step)
    counted = [count(step, point) for point in where]
    moments = len(counted[0].moments) if counted[0].gradients else 2
    planes = torch.linalg.solve(
        torch.tensor([point.features for point in where], dtype=torch.float64),
        torch.tensor([live.moments[:moments] for live in counted], dtype=torch.float64),
    ).T
    last = counted[-1]
    return {
        "gradients": [round(then / (last.gradients or 1), 4) for then in last.gradients_then[:moments]],
        "bytes": [[float(f"{value:.7g}") for value in plane] for plane in planes.tolist()],
    }


def shape(family: str) -> dict[str, Any]:
    """How many values each part of a model has, what its UNet's layers put out, and the layers that a LoRA is put into,
    by block: (rows, columns, pixels of the kernel, how many such)."""
    parts = random_model.modules(family).items()
    shapes = {name: {key: tuple(t.shape) for key, t in module.state_dict().items()} for name, module in parts}
    return anatomy.as_json(anatomy.of_shapes(shapes))


def vae(job: Job) -> dict[str, list[float]]:
    """What encoding and decoding a picture hold, (a, b): a + b for each pixel, in full precision."""
    _stage(job, "the VAE", 0, 1)
    found, sides = {}, (512, 1024)
    for what in ("encode", "decode"):
        small, large = (_vae_peak(what, side) for side in sides)
        each = (large - small) / (sides[1] ** 2 - sides[0] ** 2)
        found[what] = [round(small - each * sides[0] ** 2, 1), round(each, 4)]
    return found


def _vae_peak(what: str, side: int) -> int:
    module = random_model.modules("sd1")["vae"].requires_grad_(False)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        fill(module, "no", trains_all=True)
        given = (
            torch.zeros(1, 3, side, side)
            if what == "encode"
            else torch.zeros(1, 4, side // LATENT_FACTOR, side // LATENT_FACTOR)
        )
        with Live((), [*module.parameters(), *module.buffers()]) as live:
            getattr(module, what)(given)
    return live.peak


_COUNTS: dict[str, Callable[[Job], Any]] = {"families": _families, "drawing": _drawing, "vae": vae}
