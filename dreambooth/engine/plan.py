"""The plan of a run, made without running it: every picture with its caption and crop, steps, disk, time."""

from __future__ import annotations

from typing import Any

from PIL import Image

from dreambooth.core import run
from dreambooth.core.budget import budget
from dreambooth.core.forecast import disk_bytes
from dreambooth.core.run import Job
from dreambooth.engine.data import class_pictures, pictures
from dreambooth.engine.work import Work


def report(job: Job) -> dict[str, Any]:
    """What a run with these settings will do. Raises UserError for what would stop it."""
    work = Work.open(job)
    found = pictures.instance_pictures(work.settings.concepts)
    length = budget(work.settings, len(found))
    plans = class_pictures.plan(work.project, work.settings, found, work.size)
    return {
        "pictures": [_picture(one, work.size) for one in found],
        "class_pictures": [
            {"folder": str(p.folder), "wanted": p.wanted, "there": len(p.there), "missing": p.missing} for p in plans
        ],
        "size": work.size,
        "epochs": length.epochs,
        "images": length.images,
        "steps": length.steps,
        "disk_bytes": disk_bytes(int(work.project.about["parameters"]), work.settings),
        "seconds": _seconds(work, length.steps),
        "output_folder": str(work.folders.loras if work.settings.is_lora else work.folders.checkpoints),
    }


def _picture(one: pictures.Picture, size: int) -> dict[str, Any]:
    with Image.open(one.path) as image:
        width, height = image.size
    short = min(width, height)
    left, top = (width - short) // 2, (height - short) // 2
    warning = f"smaller than {size} pixels; it will be enlarged" if short < size else ""
    return {
        "path": str(one.path),
        "prompt": one.prompt,
        "width": width,
        "height": height,
        "crop": [left, top, left + short, top + short],
        "warning": warning,
    }


def _seconds(work: Work, steps: int) -> float | None:
    """The time of the training steps at the pace of this model's last run of the same kind; None without one."""
    for job in reversed(run.runs(work.project)):
        pace = job.progress().get("steps_per_second")
        before = job.settings()
        same = (
            "general.method",
            "general.resolution",
            "batching.train_batch_size",
            "batching.gradient_accumulation_steps",
        )
        now = work.job.settings()
        if pace and all(before.get(key) == now[key] for key in same):
            return round(steps / pace, 1)
    return None
