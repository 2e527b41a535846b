"""What a request's fields are called where a person reads of them."""

from __future__ import annotations


def called(key: str, label: str) -> str:
    """A field's name in a sentence, as `label` has it: --from-step by --{}, from_step by {}."""
    return label.format(key.replace("_", "-") if label.startswith("--") else key)
