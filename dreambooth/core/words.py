"""Words that learned with a LoRA, as its file says, and how each is written in a WebUI's prompts.

A WebUI knows an embedding by its file's name, and calls it by nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

KEY = "dreambooth.words"  # in a LoRA's metadata; its values are the engine's


def of(metadata: Mapping[str, str]) -> list[str]:
    """The words that learned with a LoRA, in the order of its embeddings; none where its metadata has no list."""
    try:
        said = json.loads(metadata.get(KEY, "{}"))
    except (ValueError, TypeError, RecursionError):
        return []
    return list(said) if isinstance(said, dict) else []


def stem(result: str, number: int, count: int) -> str:
    """What the embedding of a result's word is called: as the result, and numbered where there are several words."""
    return result if count == 1 else f"{result}-{number + 1}"


def in_webui(prompt: str, lora: Path, metadata: Mapping[str, str], embeddings: Path) -> str:
    """The prompt with each word as the WebUI knows it: by the name of its embedding, where that is in its folder."""
    words = of(metadata)
    known = {word.lower(): stem(lora.stem, number, len(words)) for number, word in enumerate(words)}
    names = {word: name for word, name in known.items() if (embeddings / f"{name}.safetensors").is_file()}
    either = "|".join(re.escape(word) for word in sorted(names, key=len, reverse=True))
    if not either:
        return prompt
    return re.sub(rf"(?<!\w)({either})(?!\w)", lambda found: names[found[1].lower()], prompt, flags=re.IGNORECASE)
