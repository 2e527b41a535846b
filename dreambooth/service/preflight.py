"""What would end a job as soon as its engine has begun, known without one: told when the job is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dreambooth.core import picture_files, project, settings
from dreambooth.core.errors import UserError
from dreambooth.core.files import paths
from dreambooth.core.job_folder import Job
from dreambooth.core.models import anatomy, checkpoint
from dreambooth.core.project import Folders, Project
from dreambooth.core.run_length import budget, passed_already
from dreambooth.core.settings import Settings

_WITH_PICTURES = ("train", "class-images")  # kinds of jobs that begin with the pictures of all concepts


def check_new(opened: Project, chosen: Settings, folders: Folders | None = None) -> None:
    """Raises UserError with every reason why a new run with these settings would be refused, which writes its result
    into one of `folders`; without them, why class pictures would be."""
    if problems := _problems(opened, chosen, folders):
        raise UserError(problems)


def check(job: Job, changes: Mapping[str, Any] | None = None, step: int | None = None) -> None:
    """Raises UserError with all of its `problems`."""
    if found := problems(job, changes, step):
        raise UserError(found)


def problems(job: Job, changes: Mapping[str, Any] | None = None, step: int | None = None) -> list[str]:
    """Everything that a job would be refused for; with `changes` to its settings, as dotted keys, and where it goes on
    from another state than the newest, from that of `step`."""
    kind, folders = job.read()["kind"], job.folders()
    if kind not in _WITH_PICTURES or "result" in job.story().last:
        return []
    chosen = settings.parse({**job.settings(), **(changes or {})})
    too_short = _too_short(job, chosen, step)
    return [
        *_problems(
            project.read(job.folder.parents[1], folders.checkpoints), chosen, folders if kind == "train" else None
        ),
        *([too_short] if too_short else []),
    ]


def _problems(opened: Project, chosen: Settings, folders: Folders | None) -> list[str]:
    found = [opened.problem] if opened.problem else []
    for file in _start_files(chosen):
        try:
            checkpoint.read_header(Path(file).expanduser())
        except UserError as error:
            found += error.problems
    found += _lora_blocks(opened, chosen)
    if folders:
        found += _unwritable(opened, chosen, folders)
    return [*found, *picture_files.problems(chosen.concepts)]


def _unwritable(opened: Project, chosen: Settings, folders: Folders) -> list[str]:
    """Where the result cannot be written, and the words that learn with it."""
    places = [opened.results(folders, chosen), *([folders.embeddings] if chosen.words_learn else [])]
    reasons = {place: paths.unwritable(place) for place in places}
    return [f"{place}: the result cannot be written there ({why}); mend that." for place, why in reasons.items() if why]


def _start_files(chosen: Settings) -> list[str]:
    """What is gone on from."""
    lora = chosen.lora.start_file.strip() if chosen.is_lora else ""
    word = chosen.embedding.start_file.strip() if chosen.words_learn else ""
    return [file for file in (lora, word) if file]


def _lora_blocks(opened: Project, chosen: Settings) -> list[str]:
    if opened.problem or not chosen.lora.blocks.strip():
        return []
    try:
        problem = anatomy.blocks_problem(chosen, checkpoint.read_header(opened.source))
    except UserError:  # a damaged model is told of when it is opened
        return []
    return [problem] if problem else []


def _too_short(job: Job, chosen: Settings, step: int | None) -> str:
    steps_made = max(job.states(), default=0) if step is None else step
    seen = picture_files.seen_each_epoch(chosen.concepts) if steps_made else 0
    return passed_already(chosen, steps_made, budget(chosen, seen)) if seen else ""
