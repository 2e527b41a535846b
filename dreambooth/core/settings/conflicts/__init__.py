"""Settings of training that do not go together, each with the mend; found before anything starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreambooth.core.settings.conflicts import of_memory, of_optimizers, of_pictures, of_results, of_training

if TYPE_CHECKING:
    from dreambooth.core.settings import Settings


def found(settings: Settings) -> list[str]:
    """Every problem of settings that are each right by themselves; one sentence each."""
    parts = (of_optimizers, of_memory, of_pictures, of_training, of_results)
    return [problem for part in parts for problem in part.found(settings)]
