"""What a job needs to know that has a captioning model describe pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dreambooth.core import picture_files
from dreambooth.core.errors import UserError
from dreambooth.core.files import confinement, paths
from dreambooth.core.models import captioner_folder, hub
from dreambooth.core.settings import Settings
from dreambooth.service.field_names import called


def fields(chosen: Settings, wanted: Mapping[str, Any], *, label: str = "{}") -> dict[str, Any]:
    """The job's fields. `wanted` has `with`, a folder or a model of the hub; `concept`, the number of one, or nothing
    for all; and `over`, whether captions that are there are replaced. `label` shows a person a key's name.

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
        _check_pictures(chosen, number)
    return {"captioner": _captioner(wanted.get("with"), called("with", label)), "concepts": concepts, "over": over}


def _check_pictures(chosen: Settings, number: int) -> None:
    """Raises UserError for a concept without pictures, or whose captions must not be written."""
    concept, key = chosen.concepts[number], f"concepts.{number}.instance_data_dir"
    if found := [one for one in picture_files.problems_of(concept, number) if one.startswith(key)]:
        raise UserError(found)
    confinement.check(Path(concept.instance_data_dir).expanduser(), key)


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
