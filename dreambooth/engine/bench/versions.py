"""With which versions of the engine's packages something was measured or counted."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

COUNTED = ("torch", "diffusers", "transformers", "peft")  # that decide what a step holds
MEASURED = (*COUNTED, "accelerate")


def versions(names: tuple[str, ...] = MEASURED) -> dict[str, str]:
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not there"
