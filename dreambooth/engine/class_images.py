"""Making the class pictures that a training run will need, without training."""

from __future__ import annotations

from typing import Any

from dreambooth.core.errors import UserError
from dreambooth.core.job_folder import Ending, Job
from dreambooth.engine.checkpoints.source import open_model
from dreambooth.engine.data import class_pictures, pictures
from dreambooth.engine.run.setup import load, make_class_pictures, write_class_sheet
from dreambooth.engine.work import Asked, Work


def run(job: Job) -> tuple[Ending, dict[str, Any]]:
    """Makes what is missing; the model is only loaded if anything is. Returns the counts and the sheet of all."""
    work = Work.open(job)
    gathered = pictures.gather(work.settings.concepts)
    gathered.usable()
    held_out = pictures.held_out(gathered.pictures, work.settings)
    variants = pictures.examples(gathered, work.settings, work.size)
    instances = [some for some in variants if some[0].picture not in held_out]
    plans = class_pictures.plan(work.project, work.settings, instances, work.size)
    if not plans:
        raise UserError(_none_wanted(work.settings.concepts[0].class_mode))
    class_pictures.inspect_existing(plans)
    missing = sum(plan.missing for plan in plans)
    try:
        if missing:
            make_class_pictures(work, load(work, open_model(work.project))[0], plans, missing)
    except Asked as asked:
        return asked.ending, {}
    counts = [{"folder": str(plan.folder), "pictures": plan.wanted, "made": plan.missing} for plan in plans]
    return "done", {"class_pictures": counts, "sheet": write_class_sheet(work, plans)}


def _none_wanted(mode: str) -> str:
    if mode == "fill":
        return "concepts.0.num_class_images_per: it is 0, so this model trains without class pictures."
    return f"concepts.0.class_mode: it is {mode}, so this model trains without class pictures."
