"""The memory of models of full size."""

from __future__ import annotations

from dreambooth.core.memory import footprint
from dreambooth.core.memory.footprint import Memory
from dreambooth.core.memory.footprint_table import full_size
from dreambooth.core.models.families import RESOLUTIONS
from dreambooth.core.settings import Settings


def family_needs(settings: Settings, family: str) -> Memory:
    """What training a model of full size of a family takes, at the settings' resolution or the family's own."""
    side = settings.general.resolution or RESOLUTIONS[family]
    return footprint.needs(settings, full_size(family), family, side**2)
