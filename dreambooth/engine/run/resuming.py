"""Resuming a run from its newest state, on the same checkpoint and pictures."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from dreambooth.core.errors import UserError
from dreambooth.core.job_folder import Ending, Job
from dreambooth.core.models import checkpoint
from dreambooth.core.run_length import Budget, passed_already
from dreambooth.core.settings import Settings
from dreambooth.engine.data.masks import file_of
from dreambooth.engine.data.pictures import Example
from dreambooth.engine.training import state
from dreambooth.engine.training.session import Session
from dreambooth.engine.work import Work


def ended_before(job: Job) -> Ending | None:
    """How the run ended, if it was killed after its result had been written and before it could report that."""
    result = job.story().last.get("result")
    return result["ending"] if result else None


def may_go_on(job: Job) -> bool:
    """Whether a run that has written its result keeps its last state, because it ended by its patience."""
    return bool(job.story().last.get("result", {}).get("past_best"))


def restore(work: Work, session: Session) -> None:
    """Restores the newest state, if there is one. Raises UserError if the run cannot go on from it."""
    saved = state.load_newest(work.job.state)
    if saved is None:
        return
    weights, rest = saved.content["weights"], saved.content["rest"]
    changed = {name for name, known in rest["about"].items() if session.about.get(name) != known}
    if "source" in changed:
        raise UserError(
            f"{work.project.source}: the checkpoint has changed since this run began; put the former one back, or "
            "start a new run."
        )
    if "length" in changed and (following := _settings_by_length(work.settings)):
        saved.warnings.append(
            f"The run has another length now, and {' and '.join(following)} go by it: from here on as in a run of this "
            "length, before as in one of the former."
        )
    if "pictures" in changed:
        saved.warnings.append(
            "The pictures, their captions, crops or masks have changed since the last state; these go on with it."
        )
    for warning in saved.warnings:
        work.job.warn(warning)
    session.restore(weights, rest)
    if problem := passed_already(work.settings, session.step, session.budget):
        raise UserError(problem)
    work.job.report("resumed", step=session.step)


def _settings_by_length(settings: Settings) -> list[str]:
    depends_on_length = {
        "learning.scheduler": settings.learning.scheduler != "constant",
        "learning.warmup": settings.learning.warmup > 0,
        "tuning.text_encoder_ratio": not settings.tuning.text_encoder_steps
        and 0 < settings.tuning.text_encoder_ratio < 1,
        "embedding.ratio": 0 < settings.words_share < 1,
    }
    return [key for key, depends in depends_on_length.items() if depends]


def about(work: Work, length: Budget, own: list[Example], priors: list[Example]) -> dict[str, str]:
    """Fingerprints of the checkpoint, the pictures and the length of a run, by which a change is noticed on
    resuming."""
    masked = bool(work.settings.objective.masked or work.project.about.get("inpainting"))
    marks = {path: _mark(path, masked=masked) for path in {example.picture.path for example in (*own, *priors)}}
    seen = [[marks[one.picture.path], one.picture.prompt, one.cut.conditions] for one in (*own, *priors)]
    pictures_mark = hashlib.sha256(json.dumps(seen).encode()).hexdigest()
    source = checkpoint.fingerprint(work.project.source)
    return {"source": source, "pictures": pictures_mark, "length": str(length.images)}


def _mark(picture: Path, *, masked: bool) -> str:
    """The fingerprint of a picture, and of its mask where masks are used."""
    mask = file_of(picture) if masked else None
    return "".join(checkpoint.fingerprint(file) for file in (picture, mask) if file)
