"""What a checkpoint, LoRA or embedding is, in a line or two, before anything is made of it."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from dreambooth.core.errors import UserError
from dreambooth.core.files import paths
from dreambooth.core.formatting import size
from dreambooth.core.models.checkpoint import family_name
from dreambooth.core.models.families import FAMILIES
from dreambooth.core.project import Folders, Project, open_project
from dreambooth.service import models
from dreambooth.ui.describe.of_models import ranks
from dreambooth.ui.page.fragments import root, sentence_list

_GUESSED = ("assumed", "file name")  # how a prediction type is known that a person may know better
_KINDS = {"lora": "LoRA", "embedding": "Embedding", "vae": "VAE", "checkpoint": "Checkpoint"}

SOURCE = "Source Checkpoint"  # what the page calls it
STARTS = ("lora.start_file", "embedding.start_file")  # the settings that name what a run goes on from

About = dict[str, Any]


def source_view(path: Path) -> str:
    """A checkpoint that a model may be made from; a sentence where it cannot be, or cannot be read."""
    try:
        about = models.inspect(path, label=SOURCE)
    except UserError as error:
        return sentence_list(error.problems)
    guess = '<p class="db-quiet">Its prediction type is a guess; <b>How to read it</b> overrules it.</p>'
    asks = not about["reason"] and about["known_by"] in _GUESSED
    reason = sentence_list([f"{path.name}: {about['reason']}."] if about["reason"] else [])
    return f"{_line(about)}{_making(about)}{guess if asks else ''}{reason}"


def start_view(folders: Folders, model: str, key: str) -> str:
    """The file that the next run goes on from, as the setting `key` names it; nothing where it names none."""
    opened = open_project(folders, model)
    named = paths.meant(str(opened.settings()[key]))
    return root("some", [("file", _start(opened, key, named) if named else "")])


def _start(opened: Project, key: str, named: str) -> str:
    try:
        about = models.inspect(Path(named), label=key)
    except UserError as error:
        return sentence_list(error.problems)
    family, own = about["family"], opened.about["family"]
    strange = family in FAMILIES and family != own
    problem = (
        f"It is of {FAMILIES.get(family)}, and this model is {FAMILIES.get(own)}: name another, or leave it empty."
    )
    return _line(about) + _making(about) + sentence_list([problem] if strange else [])


def _line(about: About) -> str:
    known = about["family"] in FAMILIES
    parts = [_KINDS.get(about["kind"], ""), family_name(about) if known else ""]
    if about["kind"] == "checkpoint":
        parts += [about["prediction_type"], "Zero terminal SNR" if about["zero_terminal_snr"] else ""]
        parts += [f"{about['resolution']} px", "With EMA weights" if about["has_ema"] else ""]
    parts += [f"rank {ranks(about['ranks'])}" if about["ranks"] else "", about["precision"], size(about["bytes"])]
    return f'<p class="db-about">{escape(" · ".join(filter(None, parts)))}</p>'


def _making(about: About) -> str:
    words = ", ".join(about["trained_words"])
    parts = [f"Trained on: {words}" if words else "", f"Written by {about['trainer']}" if about["trainer"] else ""]
    text = " · ".join(filter(None, parts))
    return f'<p class="db-quiet">{escape(text)}</p>' if text else ""
