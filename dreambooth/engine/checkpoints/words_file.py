"""Words that have learned, in files: within their LoRA, so that it is never without them, and as embeddings that every
WebUI reads from a folder of its own.

A LoRA holds them in its metadata, which no reader of LoRAs stumbles over: {word: {text encoder: [n, width, base64 of
the numbers in 32 bits]}}, and where that is asked for also as tensors, where A1111 and SD.Next find them. An embedding
is a file for each word, with `emb_params` (n, width), of SDXL `clip_l` and `clip_g`; its metadata has the other words
that learned with it in the same form, and none for its own. As a .pt, which has no metadata, it is what A1111 writes.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreambooth.core import learned_words as words_module
from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic
from dreambooth.core.models import embedding_file
from dreambooth.core.models.model_file import Header
from dreambooth.engine.checkpoints.entry import Entry
from dreambooth.engine.checkpoints.source import Files
from dreambooth.engine.checkpoints.write import free_name, write
from dreambooth.engine.prompts.textual_inversion import Vectors

_EMBEDDING_KEYS = {
    "sd1": {"text_encoder": "emb_params"},
    "sd2": {"text_encoder": "emb_params"},
    "sdxl": {part: name for name, part in embedding_file.OF_SDXL.items()},
}
_TOKEN = 265  # that A1111 writes for `*`, and nobody reads

Read = dict[str, dict[str, Tensor]]


def metadata(words: Vectors, own: str = "") -> dict[str, str]:
    """The metadata of a file for words that learned together; empty without words. `own` is the word that the file
    itself is an embedding of."""
    entries: dict[str, Any] = {
        word: None if word == own else {part: _encoded(vectors) for part, vectors in of_word.items()}
        for word, of_word in words.items()
    }
    return {words_module.KEY: json.dumps(entries, ensure_ascii=False)} if entries else {}


def read(header: Header) -> Read:
    """The words that belong to a LoRA, or to an embedding; those of another program's LoRA are called as they are
    there, and its embedding as its file, as in a WebUI. None for any other file. Raises UserError if they are
    damaged."""
    ours, own = header.metadata.get(words_module.KEY), embedding_file.parts(header.tensors)
    of_others = {header.path.stem: own} if own else embedding_file.bundled(header.tensors)
    if ours is None and not of_others:
        return {}
    try:
        found: Read
        if ours is None:
            found = {word: _own(parts) for word, parts in of_others.items()}
        else:
            found = {
                str(word): _own(own) if parts is None else {str(part): _decoded(*some) for part, some in parts.items()}
                for word, parts in json.loads(ours).items()
            }
        counts = [{len(vectors) for vectors in of_word.values()} for of_word in found.values()]
    except (ValueError, TypeError, AttributeError, RuntimeError, RecursionError, OSError, binascii.Error):
        counts = [set()]
    if any(len(count) != 1 or 0 in count for count in counts):
        what = "the words that it was trained with" if ours is not None else "its vectors"
        raise UserError(f"{header.path}: {what} cannot be read; the file is damaged.")
    return found


def bundled(words: Vectors, family: str) -> dict[str, Tensor]:
    """The words as tensors of their LoRA's file, by their names there."""
    return {
        embedding_file.bundled_name(word, _EMBEDDING_KEYS[family][part]): vectors.detach().float().cpu().contiguous()
        for word, of_word in words.items()
        for part, vectors in of_word.items()
    }


def write_embeddings(
    folder: Path,
    stem: str,
    family: str,
    words: Vectors,
    about: dict[str, str],
    *,
    suffix: str = ".safetensors",
    half: bool = False,
) -> dict[str, Path]:
    """Writes an embedding for each word, under a name of its own that begins with `stem`. Returns the files.

    Raises UserError if one cannot be written; then, and whatever else ends it, there is none of them.
    """
    files: dict[str, Path] = {}
    try:
        for number, word in enumerate(words):
            target = free_name(folder, words_module.stem(stem, number, len(words)), suffix)
            write_embedding(target, family, words, word, about, half=half)
            files[word] = target
    except BaseException:
        for file in files.values():
            atomic.discard(file)
        raise
    return files


def write_embedding(
    target: Path, family: str, words: Vectors, word: str, about: Mapping[str, str], *, half: bool = False
) -> None:
    """Writes the embedding of one of some words that learned together. Raises UserError if it cannot be written."""
    about_word = {"modelspec.title": target.stem, "modelspec.trigger_phrase": word, **metadata(words, word)}
    dtype, keys, within = torch.float16 if half else torch.float32, dict(_EMBEDDING_KEYS[family]), None
    if target.suffix.lower() == ".pt":
        if len(keys) == 1:
            keys = dict.fromkeys(keys, "*")
            within = partial(_as_a1111, target.stem, about.get("dreambooth.base"))
        else:
            within = dict
    entries = {keys[part]: Entry.of(vectors.detach().to("cpu", dtype)) for part, vectors in words[word].items()}
    write(target, entries, {**about, **about_word}, within)


def _as_a1111(name: str, base: str | None, tensors: dict[str, Any]) -> dict[str, Any]:
    """A1111's .pt around its tensor `*`."""
    about = {"name": name, "step": None, "sd_checkpoint": None, "sd_checkpoint_name": base}
    return {"string_to_token": {"*": _TOKEN}, "string_to_param": tensors, **about}


def _own(parts: Mapping[str, Any]) -> dict[str, Tensor]:
    """The vectors that are a file's own tensors, (n, width) each."""
    files, found = Files(), {}
    for part, place in parts.items():
        vectors = files.read(place).to(torch.float32, copy=True).reshape(-1, place.shape[-1])
        if not torch.isfinite(vectors).all():
            raise ValueError
        found[part] = vectors
    return found


def _encoded(vectors: Tensor) -> list[object]:
    """[n, width, base64]."""
    numbers = vectors.detach().float().cpu().contiguous()
    return [*numbers.shape, base64.b64encode(numbers.numpy().astype("<f4").tobytes()).decode()]


def _decoded(count: int, width: int, encoded: str) -> Tensor:
    """(count, width) in float32. Raises ValueError for what is damaged."""
    content = bytearray(base64.b64decode(encoded, validate=True))
    vectors = torch.frombuffer(content, dtype=torch.float32).reshape(count, width)
    if not torch.isfinite(vectors).all():
        raise ValueError
    return vectors
