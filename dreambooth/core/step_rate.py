"""How quickly a model's runs went, which tells how long the next of the same kind takes."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from dreambooth.core import job_list
from dreambooth.core.errors import UserError
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
    for job in reversed(job_list.runs(project)):
        pace = job.progress().get("steps_per_second")
        with contextlib.suppress(UserError):  # one that is damaged tells nothing
            before = job.settings() if pace else {}
            if pace and all(before.get(key) == flat[key] for key in _SAME):
                return float(pace)
    return 0.0
