"""One job from its folder to its outputs, stage by stage: the first file of the engine to read.

pictures -> model -> class pictures -> cache -> training -> outputs
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from dreambooth.core.budget import Budget, budget
from dreambooth.core.errors import UserError
from dreambooth.core.forecast import disk_bytes
from dreambooth.core.run import Job
from dreambooth.core.settings import Settings
from dreambooth.engine import families, imagic, notices, outputs, sampling_choice, start_file
from dreambooth.engine.checkpoints import lora
from dreambooth.engine.checkpoints.lora_layers import AnyLayer
from dreambooth.engine.checkpoints.source import Source, open_model
from dreambooth.engine.data import cache, class_pictures, masks, pictures, survey
from dreambooth.engine.data.cache import Encoded
from dreambooth.engine.data.latent_store import Store
from dreambooth.engine.data.order import Order, Slot
from dreambooth.engine.data.pictures import Example
from dreambooth.engine.data.readings import Readings
from dreambooth.engine.families.model import Model
from dreambooth.engine.listener import asked_to_end
from dreambooth.engine.sampling import decoding
from dreambooth.engine.tensorboard import EventFile, curves
from dreambooth.engine.training import adapters, attention, optimizers, precision, preview, state
from dreambooth.engine.training.ema import Ema
from dreambooth.engine.training.loop import Ending, train
from dreambooth.engine.training.session import Session
from dreambooth.engine.training.text import Texts
from dreambooth.engine.work import Asked, Work

CLASS_SHEET = "class-pictures.png"  # in the model's folder


def run(job: Job, let_end: Callable[..., None] | None = None) -> Ending:
    """Does a training job, or goes on with it. Raises UserError for what a person can mend.

    `let_end` says which requests may end it by a KeyboardInterrupt from now on, wherever it is.
    """
    work = Work.open(job, let_end)
    work.let_end(*work.ends_now)
    try:
        ending = _run(work)
    except (Asked, KeyboardInterrupt):
        ending = asked_to_end(job)
        if not ending:
            raise
    except BaseException:
        notices.tell_of_end(work, "failed")
        raise
    if ending != "paused":
        shutil.rmtree(job.state, ignore_errors=True)
        imagic.forget(work)
    notices.tell_of_end(work, ending)
    return ending


def _run(work: Work) -> Ending:
    check_abilities(work)
    gathered = pictures.gather(work.settings.concepts, partial(work.stage, "looking at pictures"))
    found = gathered.usable()
    instances = pictures.examples(gathered, work.settings, work.size)
    length = budget(work.settings, pictures.seen_each_epoch(found, work.settings.concepts))
    source = open_model(work.project)
    _check_disk(work, source, length)
    if problem := masks.problem(work.settings, (picture.path for picture in found)):
        raise UserError(problem)
    if problem := pictures.imagic_problem(work.settings, len(found)):
        raise UserError(problem)
    start = start_file.layers(work.settings, source)
    model, accelerator = load(work, source)
    priors = _class_pictures(work, model, instances)
    session = _prepare(work, model, accelerator, length, instances, priors, start)
    work.let_end()  # from here on the loops look, at every step
    hooks = Hooks(work, session, source)
    if work.settings.imagic.enabled:
        imagic.fit_words(work, session, hooks)
    ending = train(session, hooks)
    if "discard" in work.job.requests():
        return "discarded"
    if ending in ("done", "stopped"):
        work.let_end("discard")
        _finish(work, session, source)
    return ending


def check_abilities(work: Work) -> None:
    """Raises UserError for what this device, environment or model cannot do, before anything is begun."""
    settings, about = work.settings, work.project.about
    if reason := sampling_choice.problem(settings.previews.scheduler, zero_terminal_snr=about["zero_terminal_snr"]):
        raise UserError(f"previews.scheduler: {reason}.")
    precision.set_deterministic(settings.tuning.deterministic)
    device = precision.of(settings).device
    optimizers.check(settings, device)
    attention.check(settings.memory.attention, device)


def load(work: Work, source: Source) -> tuple[Model, Any]:
    work.stage("loading the model", 0, 1)
    tuning, accelerator = work.settings.tuning, precision.of(work.settings)
    model = families.load(source, precision.weights_dtype(accelerator, work.settings))
    attention.use(model.unet, work.settings.memory.attention)
    model.read_prompts(tuning.max_token_length, tuning.clip_skip, tuning.pad_tokens)
    model.to(accelerator.device)
    return model, accelerator


def _class_pictures(work: Work, model: Model, instances: list[list[Example]]) -> list[Example]:
    plans = class_pictures.plan(work.project, work.settings, instances, work.size)
    total = sum(plan.missing for plan in plans)
    if total:
        make_class_pictures(work, model, plans, total)
    prior = class_pictures.prior_pictures(plans)
    looks = survey.look_at_all([picture.path for picture in prior])
    problems = [seen.error for seen in looks if seen.error]
    if problems:
        raise UserError(problems)
    return pictures.prior_examples(prior, looks, instances)


def make_class_pictures(work: Work, model: Model, plans: list[class_pictures.Plan], total: int) -> None:
    work.stage("class pictures", 0, total)

    def on_batch(done: int, total: int, last: Path) -> None:
        work.job.report("picture", path=str(last), kind="class")
        work.stage("class pictures", done, total)

    with decoding(model, work.settings.memory.vae_decoding):
        class_pictures.make(model, plans, work.settings.batching.class_batch_size, on_batch, work.stop_if_asked)
    preview.class_sheet(class_pictures.prior_pictures(plans), work.project.folder / CLASS_SHEET)


def _prepare(
    work: Work,
    model: Model,
    accelerator: Any,
    length: Budget,
    instances: list[list[Example]],
    priors: list[Example],
    start: dict[str, AnyLayer],
) -> Session:
    settings, own = work.settings, [example for variants in instances for example in variants]
    readings = Readings(
        [example.picture.prompt for example in own],
        [example.picture.prompt for example in priors],
        settings.captions,
        settings.general.seed,
    )
    _warn_of_long_texts(work, model, readings.texts)
    encoded, encoded_priors = _encode(work, model, own, priors, readings.captions)
    if settings.objective.masked:
        cache.add_masks(encoded, own)
    slots = [_slot(some, settings) for some in instances]
    prior_slots = [Slot(example.picture.concept, example.cut.bucket) for example in priors]
    trained = adapters.prepare(model, settings, lora.by_module(start, model.parts))
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
        encoded,
        encoded_priors,
        Order(slots, prior_slots, settings.general.seed),
        readings,
        Texts(model, readings.texts),
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


def _warn_of_long_texts(work: Work, model: Model, texts: list[str]) -> None:
    long = [text for text in texts if model.is_cut(text)]
    if long:
        length = work.settings.tuning.max_token_length
        cut = f"{len(long)} of {len(texts)} captions are cut off after {length} tokens, such as: {long[0][:80]}..."
        more = "; tuning.max_token_length can be up to 225" if length < 225 else ""
        work.job.report("warning", text=cut + more)


def _encode(
    work: Work, model: Model, own: list[Example], priors: list[Example], prompts: list[str]
) -> tuple[Encoded, Encoded | None]:
    """Your pictures and those of the class as latents, from the disk where they are known already."""
    store = Store(work.project.latents, model) if work.settings.pictures.cache_on_disk else None
    count, total = partial(work.stage, "encoding pictures"), len(own) + len(priors)
    encoded = cache.encode(model, own, prompts, lambda done: count(done, total), store)
    encoded_priors = None
    if priors:
        encoded_priors = cache.encode(model, priors, prompts, lambda done: count(len(own) + done, total), store)
    if store:
        store.prune()
        if store.problem:
            work.job.report("warning", text=f"The encoded pictures could not be kept on disk ({store.problem}).")
    return encoded, encoded_priors


def _slot(variants: list[Example], settings: Settings) -> Slot:
    picture, bucket = variants[0].picture, variants[0].cut.bucket
    return Slot(picture.concept, bucket, len(variants), settings.concepts[picture.concept].repeats)


class _Interrupted(Exception):
    """A person asks for something while previews are drawn."""


class Hooks:
    """How the loop reaches the world: the job's folder and the WebUI's folders."""

    def __init__(self, work: Work, session: Session, source: Source) -> None:
        self.work, self.session, self.source = work, session, source
        self.board = EventFile(work.job.folder / "tensorboard") if work.settings.reporting.tensorboard else None

    def requests(self) -> set[str]:
        return self.work.job.requests()

    def answered(self, request: str) -> None:
        self.work.job.clear_request(request)

    def report(self, **fields: Any) -> None:
        self.work.job.report("step", **fields)
        if self.board:
            self.board.add(fields["step"], curves(fields))

    def cooling(self, seconds: int) -> None:
        self.work.job.report("cooling", seconds=seconds)

    def preview(self, images: int, check: Callable[[], None]) -> None:
        work, session = self.work, self.session
        if not work.settings.previews.count:
            return
        paths: list[Path] = []
        draw = partial(preview.make, session.model, work.settings, work.job.previews, images, work.size)
        while True:
            try:
                with session.accelerator.autocast(), session.shown():
                    draw(fitted=imagic.text_of(session), paths=paths, on_step=self._look)
                break
            except _Interrupted:
                if work.job.requests() & {"pause", "stop", "discard"}:
                    return  # what is drawn stays; the loop does what was asked
                self.answered("save")
                check()
                self.save_model(images)
        target = work.job.folder / "previews.png"
        preview.contact_sheet(work.job.previews, work.settings, target)
        work.job.report("preview", images=images, paths=[str(path) for path in paths], sheet=str(target))

    def _look(self) -> None:
        """Between two steps of a preview: whether something is asked that cannot wait for its end."""
        if self.work.job.requests() & {"pause", "stop", "discard", "save"}:
            raise _Interrupted

    def save_model(self, images: int) -> None:
        _save_output(self.work, self.session, self.source, images)

    def save_state(self, step: int, weights: dict[str, Tensor], rest: dict[str, Any]) -> None:
        path = state.save(self.work.job.state, step, weights, rest)
        self.work.job.report("state", step=step, path=str(path))


def _finish(work: Work, session: Session, source: Source) -> None:
    work.job.report("stage", name="writing the result", done=0, total=1)
    _save_output(work, session, source, session.budget.images_seen(session.step))


def _save_output(work: Work, session: Session, source: Source, images: int) -> None:
    with session.shown():
        path = outputs.save(work.folders, work.project, work.settings, session.model, source, session.trained, images)
    imagic.keep(work.project, path, session)
    kind = "lora" if work.settings.is_lora else "checkpoint"
    work.job.report("saved", kind=kind, path=str(path), bytes=path.stat().st_size, images=images)


def _check_disk(work: Work, source: Source, length: Budget) -> None:
    """Raises UserError if what the run will write does not fit."""
    needed = disk_bytes(source.header, work.settings, length)
    free = shutil.disk_usage(work.folders.models).free
    if needed > free:
        raise UserError(
            f"{work.folders.models}: the run writes about {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free; "
            "make room, or save states and models less often."
        )
