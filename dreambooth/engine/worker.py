"""One job from its folder to its outputs, stage by stage: the first file of the engine to read.

pictures -> model -> class pictures -> cache -> training -> outputs
"""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreambooth.core import settings as settings_module
from dreambooth.core.budget import Budget, budget
from dreambooth.core.errors import UserError
from dreambooth.core.project import Folders, Project, open_project
from dreambooth.core.run import Job
from dreambooth.core.settings import Settings
from dreambooth.engine import families, outputs
from dreambooth.engine.checkpoints import lora
from dreambooth.engine.checkpoints.source import Source, open_model
from dreambooth.engine.data import cache, class_pictures, pictures
from dreambooth.engine.data.order import Order
from dreambooth.engine.families.model import Model
from dreambooth.engine.training import adapters, optimizers, precision, preview, state
from dreambooth.engine.training.ema import Ema
from dreambooth.engine.training.loop import Ending, Session, train
from dreambooth.engine.training.text import Texts


class Asked(Exception):
    """A person asked to end before training began."""

    def __init__(self, ending: Ending) -> None:
        self.ending = ending


@dataclass
class Work:
    """A job that is being worked on: what it says, and how it reports."""

    job: Job
    folders: Folders
    project: Project
    settings: Settings

    @classmethod
    def open(cls, job: Job) -> Work:
        folders = Folders(Path(job.read()["models"]))
        return cls(job, folders, open_project(folders, job.read()["model"]), settings_module.parse(job.settings()))

    @property
    def size(self) -> int:
        """The side of the training pictures, in pixels."""
        return self.settings.general.resolution or self.project.resolution

    def stage(self, name: str, done: int, total: int) -> None:
        """Reports how far a stage is, and ends the job if a person asked for it."""
        self.job.report("stage", name=name, done=done, total=total)
        self.stop_if_asked()

    def stop_if_asked(self) -> None:
        endings: dict[str, Ending] = {"pause": "paused", "stop": "stopped", "discard": "discarded"}
        for request, ending in endings.items():
            if request in self.job.requests():
                self.job.clear_request(request)
                raise Asked(ending)


def run(job: Job) -> Ending:
    """Does a training job, or goes on with it. Raises UserError for what a person can mend."""
    work = Work.open(job)
    try:
        found = pictures.instance_pictures(work.settings.concepts)
        length = budget(work.settings, len(found))
        _check_disk(work)
        source = open_model(work.project)
        start = _start(work, source)
        model, accelerator = _load(work, source)
        prior = _class_pictures(work, model, found)
        if job.read()["kind"] == "class-images":
            return "done"
        session = _prepare(work, model, accelerator, length, found, prior, start)
        ending = train(session, Hooks(work, session, source))
    except Asked as asked:
        return asked.ending
    if ending in ("done", "stopped"):
        _finish(work, session, source)
    if ending != "paused":
        shutil.rmtree(job.state, ignore_errors=True)
    return ending


def _start(work: Work, source: Source) -> dict[str, dict[str, lora.Layer]]:
    """The layers of the LoRA file to go on from, by part and path; empty where there is none."""
    path = work.settings.lora.start_file.strip()
    if not path or not work.settings.is_lora:
        return {}
    start: dict[str, dict[str, lora.Layer]] = {}
    for name, layer in lora.read(Path(path), source.tensors, work.project.about["family"]).items():
        part, _, key = name.removesuffix(".weight").partition("/")
        if layer.mid is not None:
            raise UserError(f"lora.start_file: {path} is of LyCORIS' CP kind, which cannot be gone on from.")
        start.setdefault(part, {})[key] = layer
    if set(start) - {"unet"} and not work.settings.tuning.text_encoder_ratio:
        raise UserError(
            f"lora.start_file: {path} also teaches the text encoder; set tuning.text_encoder_ratio above 0 to go on."
        )
    return start


def _load(work: Work, source: Source) -> tuple[Model, Any]:
    work.stage("loading the model", 0, 1)
    accelerator = precision.accelerator(work.settings.tuning.mixed_precision)
    dtype = precision.compute_dtype(accelerator) if work.settings.is_lora else torch.float32
    model = families.load(source, dtype)
    model.to(accelerator.device)
    return model, accelerator


def _class_pictures(work: Work, model: Model, found: list[pictures.Picture]) -> list[pictures.Picture]:
    plans = class_pictures.plan(work.project, work.settings, found, work.size)
    total = sum(plan.missing for plan in plans)
    if total:
        work.stage("class pictures", 0, total)

    def on_batch(done: int, total: int, last: Path) -> None:
        work.job.report("picture", path=str(last), kind="class")
        work.stage("class pictures", done, total)

    class_pictures.make(model, plans, work.settings.batching.class_batch_size, on_batch, work.stop_if_asked)
    prior = class_pictures.prior_pictures(plans)
    problems = [problem for picture in prior if (problem := pictures.damage(picture.path))]
    if problems:
        raise UserError(problems)
    return prior


def _prepare(
    work: Work,
    model: Model,
    accelerator: Any,
    length: Budget,
    found: list[pictures.Picture],
    prior: list[pictures.Picture],
    start: dict[str, dict[str, lora.Layer]],
) -> Session:
    settings, total = work.settings, len(found) + len(prior)
    prompts = list(dict.fromkeys(picture.prompt for picture in found + prior))
    instances = cache.encode(
        model, found, prompts, work.size, lambda done: work.stage("encoding pictures", done, total)
    )
    priors = None
    if prior:
        priors = cache.encode(
            model, prior, prompts, work.size, lambda done: work.stage("encoding pictures", len(found) + done, total)
        )
    trained = adapters.prepare(model, settings, start)
    if settings.batching.gradient_checkpointing:
        model.unet.enable_gradient_checkpointing()
        for part in trained.text_encoders:
            model.text_encoders[part].gradient_checkpointing_enable()
    session = Session(
        settings,
        length,
        model,
        trained,
        accelerator,
        instances,
        priors,
        Order(tuple(p.concept for p in found), tuple(p.concept for p in prior), settings.general.seed),
        Texts(model, prompts),
        accelerator.prepare(optimizers.make(trained, settings)),
        Ema(trained.named(), settings.tuning.ema_decay) if settings.tuning.use_ema else None,
    )
    saved = state.load_newest(work.job.state)
    if saved:
        weights, rest, warnings = saved
        for warning in warnings:
            work.job.report("warning", text=warning)
        session.restore(weights, rest)
        work.job.report("resumed", step=session.step)
    return session


class Hooks:
    """How the loop reaches the world: the job's folder and the WebUI's folders."""

    def __init__(self, work: Work, session: Session, source: Source) -> None:
        self.work, self.session, self.source = work, session, source

    def requests(self) -> set[str]:
        return self.work.job.requests()

    def answered(self, request: str) -> None:
        self.work.job.clear_request(request)

    def report(self, **fields: Any) -> None:
        self.work.job.report("step", **fields)

    def preview(self, images: int) -> None:
        work, session = self.work, self.session
        if not work.settings.previews.count:
            return
        with session.accelerator.autocast(), _shown_weights(session):
            paths = preview.make(session.model, work.settings, work.job.previews, images, work.size)
        target = work.job.folder / "previews.png"
        preview.contact_sheet(work.job.previews, work.settings, target)
        work.job.report("preview", images=images, paths=[str(path) for path in paths], sheet=str(target))

    def save_model(self, images: int) -> None:
        _save_output(self.work, self.session, self.source, images)

    def save_state(self, step: int, weights: dict[str, Tensor], rest: dict[str, Any]) -> None:
        path = state.save(self.work.job.state, step, weights, rest)
        self.work.job.report("state", step=step, path=str(path))


def _finish(work: Work, session: Session, source: Source) -> None:
    work.job.report("stage", name="writing the result", done=0, total=1)
    _save_output(work, session, source, session.budget.images_seen(session.step))


def _save_output(work: Work, session: Session, source: Source, images: int) -> None:
    with _shown_weights(session):
        path = outputs.save(work.folders, work.project, work.settings, session.model, source, session.trained, images)
    kind = "lora" if work.settings.is_lora else "checkpoint"
    work.job.report("saved", kind=kind, path=str(path), bytes=path.stat().st_size, images=images)


def _shown_weights(session: Session) -> Any:
    """The weights that previews and outputs show: the average where there is one."""
    if session.ema:
        return session.ema.applied(session.trained.named())
    return contextlib.nullcontext()


def _check_disk(work: Work) -> None:
    """Raises UserError if what the run will write does not fit."""
    needed = forecast_bytes(work.project, work.settings)
    free = shutil.disk_usage(work.folders.models).free
    if needed > free:
        raise UserError(
            f"{work.folders.models}: the run writes about {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free; "
            "make room, or save states and models less often."
        )


def forecast_bytes(project: Project, settings: Settings) -> int:
    """About how much a run writes: its outputs, and its state, which is there twice while it changes."""
    values = int(project.about["parameters"])
    one = values * (2 if settings.saving.half_model else 4)
    every = settings.intervals.save_model_every
    saves = 1 + ((settings.intervals.num_train_epochs - 1) // every if every else 0)
    if settings.is_lora:
        return 200_000_000 * saves
    return one * saves + 2 * values * (4 + 8 + (4 if settings.tuning.use_ema else 0))
