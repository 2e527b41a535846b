"""Models on the Hugging Face hub: which one a person means, and which of its files are needed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import unquote

from dreambooth.core.errors import UserError
from dreambooth.core.models import captioner_folder
from dreambooth.core.models.diffusers_folder import INDEX, PARTS, STEMS, VARIANTS
from dreambooth.core.models.model_file import SUFFIXES

_NEWEST = "main"
_NAME = r"[A-Za-z0-9][\w.-]{0,95}"
_ADDRESS = re.compile(r"https?://(?:(?:www\.)?huggingface|hf)\.co/([^?#]*)(?:[?#].*)?")
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,199}")
_ID = re.compile(rf"({_NAME}/{_NAME})(?:/(?:(?:blob|resolve)/([^/]+)/)?([\w./ -]+))?/?")


@dataclass(frozen=True)
class HubModel:
    """`repository` is owner/name; `file` one file in it, or empty for what it holds; `revision` a branch, tag or
    commit, or empty for the newest."""

    repository: str
    file: str = ""
    revision: str = ""

    @property
    def folder_name(self) -> str:
        """Each revision has a folder of its own, or it would take the place of one that a model was made from."""
        name = f"{self.repository}@{self.revision}" if self.revision else self.repository
        return name.replace("/", "--")


def parse(text: str) -> HubModel | None:
    """owner/name, owner/name/file.safetensors, or the page's address, which may be of a revision; None for anything
    else, such as a path."""
    address = text.strip()
    if page := _ADDRESS.fullmatch(address):
        address = unquote(page[1])
    match = _ID.fullmatch(address)
    if not match or ".." in address:
        return None
    repository, revision, file = match[1], match[2] or "", match[3] or ""
    if file.startswith("tree/"):
        revision, file = file.split("/")[1], ""
    if repository.lower().endswith(SUFFIXES) or (file and not file.lower().endswith(SUFFIXES)):
        return None
    return HubModel(repository, file, "" if revision == _NEWEST else revision)


def is_revision(text: str) -> bool:
    """Whether a text can be a branch, tag or commit."""
    return bool(_REVISION.fullmatch(text)) and ".." not in text and not text.endswith(("/", "."))


def needed_files(model: HubModel, there: Iterable[str]) -> list[str]:
    """The files to download: of a Diffusers folder each part's configuration and best weights, the same of a captioning
    model with its vocabulary, otherwise one file.

    Raises UserError if it is not clear which.
    """
    files = sorted(there)
    if model.file:
        if model.file in files:
            return [model.file]
        raise UserError(f"{model.repository}: it has no file {model.file} (there: {_some(files)}).")
    if INDEX in files:
        chosen = [INDEX, *(name for name in files if re.fullmatch(r"\w+/(config|scheduler_config)\.json", name))]
        for part in PARTS:
            chosen += _weights([name for name in files if name.startswith(f"{part}/")])
        return chosen
    if captioner_folder.is_captioner(files):
        about = [name for name in files if re.fullmatch(r"[^/]+\.(json|txt|model)", name)]
        return list(dict.fromkeys([*about, *_weights(files, within="")]))
    single = [name for name in files if "/" not in name and name.lower().endswith(SUFFIXES)]
    if len(single) == 1:
        return single
    if not single:
        raise UserError(f"{model.repository}: it holds no model file and no Diffusers folder (there: {_some(files)}).")
    raise UserError(f"{model.repository}: name one of its files, as {model.repository}/{single[0]} ({_some(single)}).")


def _weights(files: list[str], within: str = r"\w+/") -> list[str]:
    """A part's weights, in the order in which they are read from a folder."""
    for suffix in ("safetensors", "bin"):
        for variant in VARIANTS:
            for stem in STEMS:
                pattern = rf"{within}{stem}({re.escape(variant)}\.{suffix}|\.{suffix}\.index{re.escape(variant)}\.json"
                pattern += rf"|{re.escape(variant)}-\d+-of-\d+\.{suffix})"
                if found := [name for name in files if re.fullmatch(pattern, name)]:
                    name_of_whole = rf"{within}{stem}{re.escape(variant)}\.{suffix}"
                    whole = [name for name in found if re.fullmatch(name_of_whole, name)]
                    return whole or found
    return []


def _some(files: list[str]) -> str:
    return ", ".join(files[:6]) + (", ..." if len(files) > 6 else "")
