"""Settings that do not go with a model, known from what its file is, before it is loaded. Light, for a plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dreambooth.core.settings import Settings
from dreambooth.engine.drawing import sampling_choice

WITH_CLIP_SKIP = ("sd1",)  # families whose text encoder WebUIs read at a block of the person's choice


def problems(settings: Settings, about: Mapping[str, Any]) -> list[str]:
    """What of the settings the model cannot have, a sentence each; `about` as a project has it."""
    found = []
    if reason := sampling_choice.problem(settings.previews.scheduler, zero_terminal_snr=about["zero_terminal_snr"]):
        found.append(f"previews.scheduler: {reason}.")
    if settings.objective.weighting == "noise" and about["prediction_type"] == "epsilon":
        found.append("objective.weighting: this model predicts the noise as it is; set it to none.")
    if said := clip_skip_problem(settings.tuning.clip_skip, about["family"]):
        found.append(said)
    return found


def clip_skip_problem(clip_skip: int, family: str) -> str:
    """Why a family cannot be read with this clip skip; empty where it can."""
    if clip_skip == 1 or family in WITH_CLIP_SKIP:
        return ""
    return (
        f"tuning.clip_skip: it is {clip_skip}, but SD 2 and SDXL are always read at one and the same block, by "
        "WebUIs too; set it to 1."
    )
