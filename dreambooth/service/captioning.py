"""Captions for pictures: by the WebUI's own BLIP or DeepDanbooru, or by the engine with a captioning model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from dreambooth.core import picture_files
from dreambooth.core.caption_writing import caption_pictures
from dreambooth.core.errors import UserError
from dreambooth.core.files import confinement, paths
from dreambooth.core.job_folder import DESCRIBE, Job
from dreambooth.core.models import captioner_folder, hub
from dreambooth.core.project import Folders, Project
from dreambooth.core.settings import Settings
from dreambooth.service import pictures, thumbnails, webui_job
from dreambooth.service.field_names import called


class Describer(Protocol):
    """What is asked of the host."""

    captioners: tuple[str, ...]

    def folders(self) -> Folders: ...
    def describe(self, picture: Path, captioner: str) -> str: ...


def fields(
    chosen: Settings, wanted: Mapping[str, Any], *, captioners: Sequence[str] = (), label: str = "{}"
) -> dict[str, Any]:
    """The job's fields. `wanted` has `with`, one of the host's `captioners`, a folder or a model of the hub; `concept`,
    the number of one, or nothing for all; with it `folder`, the one that is meant; and `over`, whether captions that
    are there are replaced. `label` shows a person a key's name.

    Raises UserError for a model that describes no pictures, and for concepts without pictures.
    """
    over, count = wanted.get("over", False), len(chosen.concepts)
    if not isinstance(over, bool):
        raise UserError(f"{called('over', label)}: it must be true or false (it is {over!r}).")
    concept = wanted.get("concept")
    if concept is not None and (isinstance(concept, bool) or concept not in range(count)):
        raise UserError(f"{called('concept', label)}: there is no concept {concept!r} (there: 0 to {count - 1}).")
    concepts = list(range(count)) if concept is None else [concept]
    for number in concepts:
        _check_pictures(chosen, number, str(wanted.get("folder") or "") if concept is not None else "")
    named, what = wanted.get("with"), called("with", label)
    captioner = named if named in captioners else _captioner(named, what)
    return {"captioner": captioner, "concepts": concepts, "over": over}


def is_webuis(wanted: Mapping[str, Any], describer: Describer) -> bool:
    """Whether the WebUI is to describe the pictures itself."""
    return wanted.get("with") in describer.captioners


def begin(folders: Folders, opened: Project, chosen: Settings, asked: dict[str, Any], describer: Describer) -> Job:
    """A new job by which the WebUI describes pictures from now on. At the first that cannot be described it ends."""

    def describe(path: Path) -> str:
        with thumbnails.readable(path) as picture:
            return describer.describe(picture, asked["captioner"])

    def work(job: Job) -> dict[str, Any]:
        return caption_pictures(job, chosen, lambda: describe, is_ended=lambda: "stop" in job.requests())

    return webui_job.begin(folders, opened, DESCRIBE, chosen, asked, work)


def _check_pictures(chosen: Settings, number: int, meant: str) -> None:
    """Raises UserError for a concept without pictures, or of another folder than is meant, or whose captions must not
    be written."""
    concept, key = chosen.concepts[number], f"concepts.{number}.instance_data_dir"
    folder = Path(concept.instance_data_dir).expanduser()
    pictures.check_meant(folder, number, meant)
    if found := [one for one in picture_files.problems_of(concept, number) if one.startswith(key)]:
        raise UserError(found)
    confinement.check(folder, key)


def _captioner(named: Any, what: str) -> str:
    """The folder of a captioning model, or what a model of the hub is called."""
    if not isinstance(named, str) or not named.strip():
        raise UserError(f"{what}: name a captioning model of the Hugging Face hub, such as {captioner_folder.BLIP}.")
    folder = paths.named(named, what)
    model = None if folder.exists() else hub.parse(named)
    if model and not model.file:
        return named.strip()
    folder = confinement.named(named, what)
    if not folder.is_dir():
        raise UserError(f"{what}: {paths.no_folder(folder)}")
    captioner_folder.check(folder)
    return str(folder)
