"""Class pictures: how many a second we draw, and how many diffusers' own script, which draws them before it trains.

The pictures are those of the same class prompt, drawn by the same model at the same size with classifier-free guidance.
Ours are drawn as they are by default, and once with the script's number of steps in the script's batches, which shows
what the drawing itself costs. Who is compared takes turns; the figures are medians over the turns.
"""

from __future__ import annotations

import shutil
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth.core import project
from dreambooth.core.errors import UserError
from dreambooth.core.job_folder import Job
from dreambooth.core.job_list import create
from dreambooth.core.settings import parse, to_json
from dreambooth.engine.bench import peers
from dreambooth.engine.bench.cases import Case
from dreambooth.engine.bench.measuring import PROMPT, Bench
from dreambooth.engine.bench.peer_diffusers import Diffusers
from dreambooth.engine.bench.peers import Peer
from dreambooth.engine.bench.versions import versions
from dreambooth.engine.process.listener import asked_to_end

CLASS_PROMPT = "a photo of a star"
PEER_STEPS, PEER_BATCH = 50, 4  # the script's own


@dataclass(frozen=True)
class Way:
    """One way to draw: whose, and in what steps and batches; 0 as they are by default."""

    who: str
    steps: int = 0
    batch: int = 0


def measure(job: Job) -> dict[str, Any]:
    """Measures in the folder that job.json names, and removes it. Returns a row for each way."""
    asked = job.read()
    folder, others = Path(asked["out"]), peers.given(asked)
    for peer in others:
        if not isinstance(peer, Diffusers):
            raise UserError(f"--peer: {peer.title} draws no class pictures; name a checkout of diffusers alone.")
    # The script draws in the model's own size.
    family, size, count = ("sd1", 512, 60) if asked.get("large") else ("sd1", 64, 20)
    case = Case(family, "full", 1, size, 1)
    ways = [Way("ours"), Way("ours", PEER_STEPS, PEER_BATCH)]
    if others:
        ways.append(Way("diffusers", PEER_STEPS, PEER_BATCH))
    turns = int(asked.get("repeats") or (3 if others else 1))
    taken: dict[Way, list[dict[str, Any]]] = {way: [] for way in ways}
    try:
        bench = Bench(job, folder, asked)
        for turn in range(turns):
            for number, way in enumerate(ways):
                if asked_to_end(job):
                    raise UserError("Stopped as asked; nothing was measured to the end.")
                done = turn * len(ways) + number
                job.report("stage", name=f"{way.who} draws", done=done, total=turns * len(ways))
                if way.who == "ours":
                    taken[way].append(_ours(bench, case, way, count))
                else:
                    taken[way].append(_peers(bench, case, count, others[0]))
        return {
            "rows": [_row(way, taken[way]) for way in ways],
            "pictures": count,
            "size": size,
            "versions": versions(),
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _ours(bench: Bench, case: Case, way: Way, count: int) -> dict[str, Any]:
    made = project.create(bench.models, f"m{bench.count}", bench.source(case.family))
    settings = {
        "general.method": "full",
        "general.resolution": case.resolution,
        "concepts.0.instance_data_dir": str(bench.pictures),
        "concepts.0.instance_prompt": PROMPT,
        "concepts.0.class_prompt": CLASS_PROMPT,
        "concepts.0.num_class_images_per": count // len(list(bench.pictures.iterdir())),
        "pictures.buckets": False,
    }
    if way.steps:
        settings |= {"concepts.0.class_infer_steps": way.steps, "batching.class_batch_size": way.batch}
    about = {"kind": "class-images", "model": made.name, "models": str(bench.models.models)}
    run = create(made.errands, about, to_json(parse(settings)))
    try:
        return bench.measured("drawing_run", case, job=str(run.folder), pictures=str(made.class_pictures))
    finally:
        shutil.rmtree(made.folder)


def _peers(bench: Bench, case: Case, count: int, peer: Peer) -> dict[str, Any]:
    drawn = bench.folder / "peer-class-pictures"
    more = ["--with_prior_preservation", f"--class_prompt={CLASS_PROMPT}", f"--class_data_dir={drawn}"]
    more += [f"--num_class_images={count}", f"--sample_batch_size={PEER_BATCH}"]
    try:
        return bench.peer(case, peer, "drawing_run", more, pictures=str(drawn))
    finally:
        shutil.rmtree(drawn, ignore_errors=True)


def _row(way: Way, taken: list[dict[str, Any]]) -> dict[str, Any]:
    keys = ("seconds", "cpu_seconds", "first_picture_seconds")
    middle = {key: statistics.median(one[key] for one in taken) for key in keys}
    count = taken[0]["count"]
    return {
        "who": way.who,
        "steps": taken[0]["steps"],
        "batch": taken[0]["batch"],
        "pictures_per_second": count / middle["seconds"],
        "cpu_seconds_each": middle["cpu_seconds"] / count,
        "first_picture_seconds": middle["first_picture_seconds"],
        "peak_bytes": int(statistics.median(one["device_peak_bytes"] or one["peak_bytes"] for one in taken)),
    }
