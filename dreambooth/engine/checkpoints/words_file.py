"""Words that have learned, in files: within their LoRA, so that it is never without them, and as embeddings that every
WebUI reads from a folder of its own.

A LoRA holds them in its metadata, which no reader of LoRAs stumbles over: {word: {text encoder: [n, width, base64 of
the numbers in 32 bits]}}. An embedding is a file for each word, with `emb_params` (n, width), of SDXL `clip_l` and
`clip_g`.
"""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path

import torch
from torch import Tensor

from dreambooth.core import words as words_module
from dreambooth.core.errors import UserError
from dreambooth.core.models.model_file import Header
from dreambooth.engine.checkpoints.write import free_name, write_tensors
from dreambooth.engine.words.learned import Vectors

_EMBEDDING_KEYS = {
    "sd1": {"text_encoder": "emb_params"},
    "sd2": {"text_encoder": "emb_params"},
    "sdxl": {"text_encoder": "clip_l", "text_encoder_2": "clip_g"},
}


def metadata(words: Vectors) -> dict[str, str]:
    """What a LoRA says of the words that learned with it; nothing without any."""
    said = {word: {part: _written(vectors) for part, vectors in of_word.items()} for word, of_word in words.items()}
    return {words_module.KEY: json.dumps(said, ensure_ascii=False)} if said else {}


def read(header: Header) -> dict[str, dict[str, Tensor]]:
    """The words that belong to a LoRA; none for a file without. Raises UserError if they are damaged."""
    said = header.metadata.get(words_module.KEY)
    if said is None:
        return {}
    try:
        found = {
            str(word): {str(part): _read(*written) for part, written in of_word.items()}
            for word, of_word in json.loads(said).items()
        }
        counts = [{len(vectors) for vectors in of_word.values()} for of_word in found.values()]
    except (ValueError, TypeError, AttributeError, RuntimeError, RecursionError, binascii.Error):
        counts = [set()]
    if any(len(count) != 1 or 0 in count for count in counts):
        raise UserError(f"{header.path}: the words that it was trained with cannot be read; the file is damaged.")
    return found


def write_embeddings(folder: Path, stem: str, family: str, words: Vectors, about: dict[str, str]) -> dict[str, Path]:
    """Writes an embedding for each word, under a name of its own that begins with `stem`. Returns the files.

    Raises UserError if one cannot be written.
    """
    files = {}
    for number, (word, of_word) in enumerate(words.items()):
        target = free_name(folder, words_module.stem(stem, number, len(words)))
        tensors = {_EMBEDDING_KEYS[family][part]: vectors.float().cpu() for part, vectors in of_word.items()}
        write_tensors(target, tensors, {**about, "modelspec.title": target.stem, "modelspec.trigger_phrase": word})
        files[word] = target
    return files


def _written(vectors: Tensor) -> list[object]:
    """[n, width, base64]."""
    numbers = vectors.detach().float().cpu().contiguous()
    return [*numbers.shape, base64.b64encode(numbers.numpy().astype("<f4").tobytes()).decode()]


def _read(count: int, width: int, written: str) -> Tensor:
    content = bytearray(base64.b64decode(written, validate=True))
    vectors = torch.frombuffer(content, dtype=torch.float32).reshape(count, width)
    if not torch.isfinite(vectors).all():
        raise ValueError
    return vectors
