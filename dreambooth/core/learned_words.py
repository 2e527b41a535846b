"""Words that learned, beside a LoRA or alone, as a result's file says, and how each is written in a WebUI's prompts.

A WebUI knows an embedding by its file's name, and calls it by nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# In the metadata of a LoRA or an embedding: {word: the engine's values, or None for what the file's own tensors are}.
KEY = "dreambooth.words"


def of(metadata: Mapping[str, str]) -> list[str]:
    """The words that learned together, in the order of their embeddings; none where the metadata has no list."""
    return list(_words_of(metadata))


def _words_of(metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        words = json.loads(metadata.get(KEY, "{}"))
    except (ValueError, TypeError, RecursionError):
        return {}
    return words if isinstance(words, dict) else {}


def stem(result: str, number: int, count: int) -> str:
    """What the embedding of a result's word is called: as the result, and numbered where there are several words."""
    return result if count == 1 else f"{result}-{number + 1}"


def names(file: Path, metadata: Mapping[str, str]) -> dict[str, str]:
    """What the embedding of each word is called that belongs to a LoRA, or to an embedding, whose own word has no
    values."""
    words, result = _words_of(metadata), file.stem
    own = next((number for number, values in enumerate(words.values()) if values is None), None)
    if own is not None and len(words) > 1:
        result = result.removesuffix(f"-{own + 1}")
    found = {word: stem(result, number, len(words)) for number, word in enumerate(words)}
    return found if own is None else {**found, list(words)[own]: file.stem}


def in_webui(prompt: str, called: Mapping[str, str], embeddings: Path) -> str:
    """The prompt with each word as the WebUI knows it: by the name of its embedding, where that is in its folder."""
    there = {word.lower(): name for word, name in called.items() if _is_there(embeddings, name)}
    either = "|".join(re.escape(word) for word in sorted(there, key=len, reverse=True))
    if not either:
        return prompt
    return re.sub(rf"(?<!\w)({either})(?!\w)", lambda found: there[found[1].lower()], prompt, flags=re.IGNORECASE)


def is_in(prompt: str, name: str) -> bool:
    """Whether a prompt has an embedding's name."""
    return bool(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", prompt, re.IGNORECASE))


def _is_there(embeddings: Path, name: str) -> bool:
    return any((embeddings / f"{name}{suffix}").is_file() for suffix in (".safetensors", ".pt"))
