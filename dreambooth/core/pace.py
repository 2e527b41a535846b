"""How quickly a model's runs went, which tells how long the next of the same kind takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dreambooth.core import run
from dreambooth.core.project import Project

_SAME = (  # runs that are alike in these go about as quickly
    "general.method",
    "general.resolution",
    "batching.train_batch_size",
    "batching.gradient_accumulation_steps",
    "batching.gradient_checkpointing",
    "batching.num_processes",
)


def steps_per_second(project: Project, flat: Mapping[str, Any]) -> float:
    """Those of the model's last run with settings like these, dotted; 0 without one."""
    for job in reversed(run.runs(project)):
        before, pace = job.settings(), job.progress().get("steps_per_second")
        if pace and all(before.get(key) == flat[key] for key in _SAME):
            return float(pace)
    return 0.0
