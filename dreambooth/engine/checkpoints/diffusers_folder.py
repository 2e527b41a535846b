"""Writing a Diffusers folder: what `from_pretrained` reads, with the vocabulary files of older readers beside."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic
from dreambooth.engine.checkpoints import names
from dreambooth.engine.checkpoints.entry import Entry
from dreambooth.engine.checkpoints.write import write
from dreambooth.engine.prompts.vocabulary import write_vocabulary

_EXPORTING = "exporting"  # how the name of a folder begins that is being written


def write_folder(to: Path, pipeline: Any, own: Mapping[str, Entry]) -> None:
    """Writes diffusers' `pipeline`, whose parts may be without weights, with the weights of `own` ({own name: entry}).

    The folder appears whole or not at all. Raises UserError if it cannot be written.
    """
    atomic.sweep_folders(to.parent, _EXPORTING)
    try:
        with atomic.staged_folder(to, _EXPORTING) as staged:
            pipeline.save_config(staged)
            for name, part in pipeline.components.items():
                if isinstance(part, nn.Module):
                    _write_part(staged / name, name, part, own)
                elif name.startswith("tokenizer"):
                    _write_tokenizer(staged / name, part)
                elif name == "scheduler":
                    part.save_pretrained(staged / name)
    except OSError as error:
        raise UserError(f"{to}: the folder cannot be written ({error.strerror}).") from None


def _write_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Raises OSError, which the tokenizers library tells by an error without a class of its own."""
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        if match := re.fullmatch(r"(.+) \(os error (\d+)\)", str(error)):
            raise OSError(int(match[2]), match[1], str(folder)) from error
        raise
    write_vocabulary(folder)


def _write_part(folder: Path, name: str, part: nn.Module, own: Mapping[str, Entry]) -> None:
    is_text = name.startswith("text_encoder")
    if is_text:
        part.config.architectures = [type(part).__name__]  # which class reads it: trainers of others ask for this
        part.config.save_pretrained(folder)
    else:
        part.save_config(folder)
    entries = {}
    for key in part.state_dict():
        canonical = names.canonical_key(name, key)
        projection = canonical.startswith("text_projection")
        # Every version of transformers reads text encoders with the level text_model, not every one without it.
        spelled = canonical if not is_text or projection else f"text_model.{canonical}"
        entries[spelled] = own[f"{name}/{canonical}"]
    stem = "model" if is_text else "diffusion_pytorch_model"
    write(folder / f"{stem}.safetensors", entries, {"format": "pt"})
