"""Which words of a prompt are the subject's own: those that are to mean nothing to the model before it is taught."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dreambooth.core import captions
from dreambooth.core.settings import Settings
from dreambooth.core.settings.dataset import Concept

_PLAIN = {"a", "an", "the", "of", "in", "on", "photo", "picture", "image", "style", "by", "with", "and"}


def prompt_of(concept: Concept) -> str:
    """The words that a concept is called by: its tokens where it has one, else its prompt; empty where that is each
    picture's own."""
    tokens = f"{concept.instance_token} {concept.class_token}" if concept.instance_token.strip() else ""
    return " ".join((tokens or concept.instance_prompt.replace(captions.FILEWORDS, " ")).split())


def own_words(chosen: Settings, words: Sequence[str]) -> list[str]:
    """Those of `words` that a concept's Instance Token has; where none is named, those of an instance prompt that are
    not in its class prompt. None where nothing tells them from the others."""
    tokens = {word for concept in chosen.concepts for word in _words(concept.instance_token)}
    if not tokens:
        with_class = [concept for concept in chosen.concepts if concept.class_prompt.strip()]
        tokens = {
            word
            for concept in with_class
            for word in _words(concept.instance_prompt)
            if word not in {*_words(concept.class_prompt), *_words(concept.class_token), *_PLAIN}
        }
    return [word for word in dict.fromkeys(words) if tokens & set(_words(word))]


def _words(text: str) -> list[str]:
    return re.findall(r"[^\s,.;:!?\"()\[\]{}|]+", text.replace(captions.FILEWORDS, " ").lower())
