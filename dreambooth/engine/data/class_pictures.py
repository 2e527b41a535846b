"""Pictures of the class, made once by the untrained model, for prior preservation.

They lie in a folder that is named after everything that they depend on, so a changed prompt or model
never reuses wrong ones, and enough of the right ones are never made again. Each picture's seed follows from its
number, so stopping half-way and going on gives the same pictures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from dreambooth.core import checkpoint
from dreambooth.core.project import Project
from dreambooth.core.settings import Concept, Settings
from dreambooth.engine.data import pictures
from dreambooth.engine.families.model import Model
from dreambooth.engine.sampling import Sampling, draw


@dataclass(frozen=True)
class Plan:
    """What one concept needs: the folder, what is there and what is missing."""

    concept: int
    prompt: str
    folder: Path
    wanted: int
    there: list[Path]
    sampling: Sampling
    seed: int

    @property
    def missing(self) -> int:
        return max(0, self.wanted - len(self.there))


def plan(project: Project, settings: Settings, instances: list[pictures.Picture], size: int) -> list[Plan]:
    """What each concept with class pictures needs; makes nothing."""
    plans = []
    for number, concept in enumerate(settings.concepts):
        wanted = concept.num_class_images_per * sum(p.concept == number for p in instances)
        if wanted:
            sampling = Sampling(
                size, size, concept.class_infer_steps, concept.class_guidance_scale, concept.class_negative_prompt
            )
            folder = _folder(project, concept, sampling, settings.general.seed)
            there = pictures.find(folder) if folder.is_dir() else []
            plans.append(Plan(number, concept.class_prompt, folder, wanted, there, sampling, settings.general.seed))
    return plans


def make(
    model: Model, plans: list[Plan], batch: int, on_batch: Callable[[int, int, Path], None], on_step: Callable[[], None]
) -> None:
    """Makes what is missing; `on_batch(done, total, last)` hears of each batch; both callbacks may stop it."""
    total, done = sum(p.missing for p in plans), 0
    for one in plans:
        one.folder.mkdir(parents=True, exist_ok=True)
        numbers = _free_numbers(one)
        for start in range(0, len(numbers), batch):
            some = numbers[start : start + batch]
            drawn = draw(model, [one.prompt] * len(some), [one.seed + n for n in some], one.sampling, on_step)
            for number, picture in zip(some, drawn):
                path = _path(one.folder, number)
                staged = path.with_suffix(".tmp")
                picture.save(staged, format="PNG")
                staged.replace(path)
            done += len(some)
            on_batch(done, total, path)


def prior_pictures(plans: list[Plan]) -> list[pictures.Picture]:
    """The class pictures that training uses, after `make`."""
    return [
        pictures.Picture(path, one.prompt.strip(), one.concept)
        for one in plans
        for path in pictures.find(one.folder)[: one.wanted]
    ]


def _free_numbers(one: Plan) -> list[int]:
    numbers: list[int] = []
    number = 0
    while len(numbers) < one.missing:
        if not _path(one.folder, number).exists():
            numbers.append(number)
        number += 1
    return numbers


def _path(folder: Path, number: int) -> Path:
    return folder / f"class-{number:05}.png"


def _folder(project: Project, concept: Concept, sampling: Sampling, seed: int) -> Path:
    if concept.class_data_dir.strip():
        return Path(concept.class_data_dir).expanduser()
    depends_on = [checkpoint.fingerprint(project.source), concept.class_prompt.strip(), asdict(sampling), seed]
    key = hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:16]
    return project.class_pictures / key
