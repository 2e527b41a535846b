"""Learning on from what a run has written: a LoRA or a word is where the model's next run begins, and of a checkpoint a
new model is made, with the settings and the pictures of the one that taught it."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path
from typing import Any

from dreambooth.core import model_record, project
from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic
from dreambooth.core.project import Folders, Project
from dreambooth.service import models, runs, settings_lock


def learn_on(folders: Folders, opened: Project, file: str) -> dict[str, Any]:
    """Readies it. Returns the `model` that learns on, and what was `done`, in a sentence.

    Raises UserError for a file that no run of the model has written or that is gone, and for settings that do not go
    with it; nothing is changed then.
    """
    _, event = runs.written_to(opened, file)[0]
    if event["kind"] == "checkpoint":
        new_name = _made_from(folders, opened, Path(file))
        done = f"The model {new_name} was made from {Path(file).name}, with these settings and pictures; choose it"
        return {"model": new_name, "done": f"{done} to train on."}
    with settings_lock.changing(opened):
        models.write_settings(opened, {**opened.settings(), **_start(event)})
    return {"model": opened.name, "done": f"The next run of {opened.name} learns on from {Path(file).name}."}


def _start(event: dict[str, Any]) -> dict[str, Any]:
    """The settings by which the next run begins with a result. A LoRA brings its layers and its words."""
    if event["kind"] == "embedding":
        return {"general.method": "embedding", "embedding.start_file": event["path"]}
    return {
        "general.method": "lora",
        "lora.start_file": event["path"],
        "lora.blocks": "",
        "embedding.start_file": "",
    }


def _made_from(folders: Folders, opened: Project, source: Path) -> str:
    """A new model like this one, called NAME-2 or the next that is free. Returns its name."""
    name = _free_name(folders, re.sub(r"-\d+$", "", opened.name))
    models.duplicate(folders, opened.name, name)
    copy = project.open_project(folders, name)
    try:
        model_record.remake(copy.folder, source, opened.reading)
    except UserError:
        atomic.remove_folder(copy.folder)
        raise
    return name


def _free_name(folders: Folders, stem: str) -> str:
    """One that begins so, shortened where a name would be too long, and that no folder has, be it a model's or not."""
    for number in itertools.count(2):
        ending = f"-{number}"
        start = stem[: project.LONGEST_NAME - len(ending)]
        start = start.encode()[: project.LONGEST_NAME_BYTES - len(ending)].decode(errors="ignore")
        if not os.path.lexists(folders.projects / f"{start}{ending}"):
            return f"{start}{ending}"
    raise AssertionError("numbers do not end")
