"""Pictures by the WebUI's own txt2img instead of the engine: a job like any other, with the WebUI at work on it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from dreambooth.core import learned_words
from dreambooth.core.drawing import Drawing, Keep, Look
from dreambooth.core.errors import UserError
from dreambooth.core.job_folder import TXT2IMG, Job
from dreambooth.core.models import checkpoint
from dreambooth.core.project import Folders, Project
from dreambooth.core.settings import Settings
from dreambooth.service import pictures, short_jobs, webui_job

LIBRARIES = ("diffusers", "webui")
_BATCH = 4  # pictures at a time, where the person leaves it to us: how much room the WebUI's model leaves is not known


class Painter(Protocol):
    """What is asked of the host."""

    name: str
    samplers: tuple[str, ...]

    def folders(self) -> Folders: ...
    def draw(self, wanted: Drawing, look: Look, keep: Keep) -> None: ...


def is_asked(wanted: Mapping[str, Any], painter: Painter) -> bool:
    """Whether the WebUI is to draw. Raises UserError for a library that is none, or that is not here."""
    library = wanted.get("library") or "diffusers"
    if library not in LIBRARIES:
        raise UserError(f"library: {library!r} is none of {', '.join(LIBRARIES)}.")
    if library == "webui" and wanted.get("sheet"):
        raise UserError("library: a sheet is drawn with diffusers alone; leave it out.")
    if library == "webui" and wanted.get("from_step") is not None:
        raise UserError("library: a state has no file for the WebUI to load; export it, or draw with diffusers.")
    if library == "webui" and not painter.samplers:
        raise UserError("library: here is no WebUI whose txt2img could be asked; draw with diffusers.")
    return library == "webui"


def fields(
    opened: Project, wanted: Mapping[str, Any], painter: Painter, *, label: str = "{}"
) -> tuple[Settings, dict[str, Any]]:
    """The settings and fields of the job. Raises UserError for what the WebUI cannot draw, and bad values."""
    sampler = wanted.get("sampler") or painter.samplers[0]
    if sampler not in painter.samplers:
        raise UserError(f"sampler: {sampler!r} is none of {painter.name}'s: {', '.join(painter.samplers)}.")
    chosen, drawing = short_jobs.drawing(opened, wanted, label=label)
    drawing.pop("scheduler")
    file = Path(drawing["weights"])
    if drawing["weights"] and opened.embedding(file).exists():
        raise UserError(f"{file}: this result of Imagic is drawn with a fitted text, which only diffusers can do.")
    tag, source, folders = "", opened.source, painter.folders()
    header = checkpoint.read_header(file) if drawing["weights"] else None
    kind = checkpoint.describe(header).kind if header is not None else ""
    if header is not None and kind in ("lora", "embedding"):
        place = folders.loras if kind == "lora" else folders.embeddings
        if not file.is_relative_to(place):
            what = "LoRAs" if kind == "lora" else "embeddings"
            raise UserError(f"{file}: the WebUI looks for {what} in {place}; put it there, or draw with diffusers.")
        tag = f" <lora:{file.stem}:{drawing['lora_weight']:g}>" if kind == "lora" else ""
        beside = folders.embeddings if kind == "lora" else file.parent
        drawing["prompt"] = learned_words.in_webui(
            drawing["prompt"], learned_words.names(file, header.metadata), beside
        )
    elif drawing["weights"]:
        source = file
    side = opened.resolution
    return chosen, {
        **drawing,
        "sampler": sampler,
        "tag": tag,
        "checkpoint": str(source),
        "width": drawing["width"] or side,
        "height": drawing["height"] or side,
    }


def begin(folders: Folders, opened: Project, chosen: Settings, drawing: dict[str, Any], painter: Painter) -> Job:
    """A new job that the WebUI draws from now on."""
    return webui_job.begin(folders, opened, TXT2IMG, chosen, drawing, lambda job: {"pictures": _draw(job, painter)})


def _draw(job: Job, painter: Painter) -> list[str]:
    """Has all pictures drawn, and keeps each in its file. Returns the files."""
    asked, drawn = job.read(), list[str]()
    count, steps, batch = asked["count"], asked["steps"], asked["batch"] or _BATCH
    folder, last = Path(asked["out"]), [-1]

    def look(share: float) -> bool:
        done = len(drawn) * steps + round(share * steps * min(batch, count - len(drawn)))
        if done != last[0]:
            last[0] = done
            job.report("stage", name=f"drawing with {painter.name}", done=done, total=count * steps, unit="steps")
        return "stop" in job.requests()

    def keep(picture: Any, seed: int, words: str) -> None:
        path = pictures.keep(picture, folder, seed, words)
        drawn.append(str(path))
        job.report("picture", path=str(path), kind="generated")

    look(0.0)
    wanted = Drawing(
        prompt=asked["prompt"] + asked["tag"],
        negative_prompt=asked["negative_prompt"],
        sampler=asked["sampler"],
        steps=steps,
        guidance_scale=asked["guidance_scale"],
        width=asked["width"],
        height=asked["height"],
        seeds=tuple(asked["seed"] + number for number in range(count)),
        batch=batch,
        checkpoint=Path(asked["checkpoint"]),
    )
    painter.draw(wanted, look, keep)
    return drawn
