"""A job that writes captions: by the engine's captioning model, or by the WebUI's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dreambooth.core import captions, picture_files
from dreambooth.core.captions import FILEWORDS
from dreambooth.core.errors import Problem
from dreambooth.core.job_folder import Job
from dreambooth.core.settings import Settings

Describe = Callable[[Path], str]  # a picture -> what it shows; empty where it stays without a caption


def caption_pictures(
    job: Job, settings: Settings, prepare: Callable[[], Describe], is_ended: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """Captions the pictures of the concepts that job.json names: those without a caption, or all of them.

    `prepare` is called if there are any, and `is_ended` before each, for a job that no signal ends. Returns each
    picture with its new caption, and how many were to get one.
    """
    request = job.read()
    concepts, over = {number: settings.concepts[number] for number in request["concepts"]}, request["over"]
    pictures = [path for concept in concepts.values() for path in picture_files.of_concept(concept)]
    todo = [path for path in pictures if over or captions.beside(path) is None]
    written: list[dict[str, str]] = []
    describe = prepare() if todo else None
    for number, path in enumerate(todo):
        job.report("stage", name="describing the pictures", done=number, total=len(todo))
        if describe is None or is_ended():
            break
        text = describe(path)
        if text and (over or captions.beside(path) is None):  # one may have been typed meanwhile
            captions.write(path, text)
            written.append({"picture": str(path), "caption": text})
    for number, concept in concepts.items() if written else ():
        if FILEWORDS not in concept.instance_prompt:
            key = f"concepts.{number}.instance_prompt"
            job.warn(Problem(f"{key}: no caption is trained on without {FILEWORDS} in it.", key, "Put it there."))
    return {"captions": written, "asked": len(todo)}
