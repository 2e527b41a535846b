"""A folder with a captioning model, as transformers writes it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dreambooth.core.errors import UserError
from dreambooth.core.files.json_file import read_object
from dreambooth.core.models.diffusers_folder import read_part

BLIP = "Salesforce/blip-image-captioning-base"  # on the Hugging Face hub
KINDS = ("blip", "git")  # that say what a picture shows without being asked a question
_CONFIG = "config.json"
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")  # of older and of newer versions


def check(folder: Path) -> None:
    """Raises UserError for a folder that holds no captioning model, or not all of one."""
    if not is_captioner(path.name for path in folder.glob("*.json")):
        missing = f"{_CONFIG} or {_PROCESSORS[0]} is missing"
        raise UserError(f"{folder}: this folder holds no captioning model ({missing}).")
    kind = read_object(folder / _CONFIG).get("model_type")
    if kind not in KINDS:
        raise UserError(
            f"{folder}: the engine cannot describe pictures with this model ({kind!r} is none of {', '.join(KINDS)})."
        )
    read_part(folder)


def is_captioner(files: Iterable[str]) -> bool:
    """Whether a folder with these files may hold one."""
    names = set(files)
    return _CONFIG in names and not names.isdisjoint(_PROCESSORS)
