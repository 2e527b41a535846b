"""Settings that do not go with a model, known from what its file is, before it is loaded. Light, for a plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dreambooth.core.settings import Settings
from dreambooth.engine.drawing import sampling_choice

WITH_CLIP_SKIP = ("sd1",)  # families whose text encoder WebUIs read at a block of the person's choice
WITH_TWO_TEXT_ENCODERS = ("sdxl",)


def problems(settings: Settings, about: Mapping[str, Any]) -> list[str]:
    """What of the settings the model cannot have, a sentence each; `about` as a project has it."""
    found = []
    if reason := sampling_choice.problem(settings.previews.scheduler, zero_terminal_snr=about["zero_terminal_snr"]):
        found.append(f"previews.scheduler: {reason}.")
    if settings.objective.weighting == "noise" and about["prediction_type"] == "epsilon":
        found.append("objective.weighting: this model predicts the noise as it is; set it to none.")
    if problem := clip_skip_problem(settings.tuning.clip_skip, about["family"]):
        found.append(problem)
    if settings.tuning.text_encoder_learns and about["family"] not in WITH_TWO_TEXT_ENCODERS:
        found += _of_two_encoders(settings)
    return found


def _of_two_encoders(settings: Settings) -> list[str]:
    """What of the settings is for two text encoders, where there is one."""
    which, ratio, found = settings.tuning.text_encoders, settings.learning.text_encoder_2_ratio, []
    if which != "both":
        found.append(f"tuning.text_encoders: it is {which}, but this model has one text encoder; set it to both.")
    if ratio != 1:
        found.append(
            f"learning.text_encoder_2_ratio: it is {ratio:g}, but this model has one text encoder; set it to 1."
        )
    return found


def clip_skip_problem(clip_skip: int, family: str) -> str:
    """Why a family cannot be read with this clip skip; empty where it can."""
    if clip_skip == 1 or family in WITH_CLIP_SKIP:
        return ""
    return (
        f"tuning.clip_skip: it is {clip_skip}, but SD 2 and SDXL are always read at one and the same block, by "
        "WebUIs too; set it to 1."
    )
