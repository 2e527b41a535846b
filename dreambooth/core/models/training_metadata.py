"""What a file tells of its making: the ranks of a LoRA, the words that it was trained on, and who wrote it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from dreambooth.core import learned_words
from dreambooth.core.models.model_file import Tensor

OURS = "this extension"
_DOWN = re.compile(
    r"(lora_(down|A)|lora(_linear_layer)?\.down|_lora\.down)(\.default)?\.weight$|(hada_w1_b|lokr_w[12]_b)$"
)
_MOST_WORDS = 8
_CONCEPT = re.compile(r"concepts\.\d+\.(instance_token|instance_prompt)")


def ranks(tensors: Mapping[str, Tensor]) -> list[int]:
    """The ranks of a LoRA's layers, each once, the smallest first; none where its layers have no rank."""
    return sorted({one.shape[0] for name, one in tensors.items() if _DOWN.search(name) and len(one.shape) > 1})


def trainer(metadata: Mapping[str, str]) -> str:
    """Who wrote a file, as people call it; empty where the file does not say."""
    if "dreambooth.settings" in metadata:
        return OURS
    if "ot_revision" in metadata:
        return "OneTrainer"
    software = _object(metadata.get("software")).get("name")
    if isinstance(software, str) and software.strip():
        return " ".join(software.split())[:40]
    return "kohya's scripts" if {"ss_network_module", "ss_session_id"} & metadata.keys() else ""


def trained_words(metadata: Mapping[str, str]) -> list[str]:
    """The words that call what a file was taught, or the captions that it saw most; none where it does not say."""
    words = learned_words.of(metadata) or _of_concepts(_object(metadata.get("dreambooth.settings")))
    words = words or metadata.get("modelspec.trigger_phrase", "").split(",")
    return _few(words) or _few(_most_seen(_object(metadata.get("ss_tag_frequency"))))


def _of_concepts(flat: Mapping[str, Any]) -> list[str]:
    """Each concept's own word; where it has none, its prompt."""
    found: dict[str, str] = {}
    for key, value in flat.items():
        if _CONCEPT.fullmatch(key) and isinstance(value, str) and value.strip():
            row = key.split(".")[1]
            found[row] = value if key.endswith("token") or row not in found else found[row]
    return list(found.values())


def _most_seen(folders: Mapping[str, Any]) -> list[str]:
    """The captions of all folders of pictures, those of most pictures first."""
    counts: Counter[str] = Counter()
    for seen in folders.values():
        if isinstance(seen, dict):
            counts.update({word: count for word, count in seen.items() if isinstance(count, int)})
    return [word for word, _ in counts.most_common(_MOST_WORDS)]


def _few(words: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(" ".join(word.split())[:60] for word in words if word.strip()))[:_MOST_WORDS]


def _object(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except (ValueError, TypeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
