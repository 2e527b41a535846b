"""From a job's folder to a session that can take its first training step, or its next one.

images and captions -> model -> class images -> cached latents -> adapters -> optimizer -> saved state -> validation
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from dreambooth.core import disk_space
from dreambooth.core.errors import Problem, UserError
from dreambooth.core.job_folder import BEFORE
from dreambooth.core.memory import footprint, memory_warnings
from dreambooth.core.models import anatomy
from dreambooth.core.run_length import budget
from dreambooth.core.settings import Settings
from dreambooth.engine import compatibility, families, hardware
from dreambooth.engine.checkpoints import lora
from dreambooth.engine.checkpoints.source import Source
from dreambooth.engine.data import class_pictures, pictures
from dreambooth.engine.data.batch_order import BatchOrder
from dreambooth.engine.data.pictures import Example
from dreambooth.engine.drawing import drawn_together
from dreambooth.engine.drawing.sampling import decoding
from dreambooth.engine.families import unet_weights
from dreambooth.engine.families.model import Model
from dreambooth.engine.run import rank_launcher, recovery, resuming, start_file
from dreambooth.engine.run.dataset import Dataset
from dreambooth.engine.tracing import graph
from dreambooth.engine.training import adapters, attention, checkpointing, optimizers, precision, preview
from dreambooth.engine.training.ema import Ema
from dreambooth.engine.training.session import Session
from dreambooth.engine.training.text_embeddings import Texts
from dreambooth.engine.training.validation import Validation
from dreambooth.engine.work import Work

_CLASS_SHEET = "class-pictures.png"  # in the model's folder


def prepare_session(work: Work, source: Source) -> tuple[Session, Validation | None]:
    """The session of a run, in its newest state where it has one, and its validation where images are held out."""
    dataset = Dataset.gather(work)
    length = budget(work.settings, pictures.seen_each_epoch(dataset.pictures, work.settings.concepts))
    if problems := disk_space.problems(work.folders, work.project, source.header, work.settings, length, work.job):
        raise UserError(problems)
    start = start_file.read(work.settings, source)
    warn_of_room(work, source, dataset)
    model, accelerator = load(work, source)
    dataset.priors = _class_pictures(work, model, dataset.instances) + dataset.kept
    captions = dataset.caption_schedule(work.settings)
    encoded = dataset.encode(work, model, captions.captions)
    work.phase = recovery.TRAINING
    trained = adapters.make_trainable(model, work.settings, lora.by_module(start.layers, model.parts), start.words)
    _warn_of_long_captions(work, model, captions.texts)
    _checkpoint_gradients(work.settings, model)
    session = Session(
        settings=work.settings,
        budget=length,
        model=model,
        trained=trained,
        accelerator=accelerator,
        instances=encoded.own,
        priors=encoded.priors,
        order=BatchOrder(*dataset.slots(work.settings), work.settings.general.seed),
        caption_schedule=captions,
        texts=_texts(work.settings, model, captions.texts),
        optimizer=accelerator.prepare(optimizers.make(trained, work.settings)),
        ema=Ema(trained.named(), work.settings.tuning.ema_decay) if work.settings.tuning.use_ema else None,
        about=resuming.about(work, length, dataset.own, dataset.priors),
        files=(_files(dataset.own), _files(dataset.priors)),
    )
    resuming.restore(work, session)
    if encoded.held_out is None:
        return session, None
    return session, Validation(session, dataset.own, encoded.held_out, dataset.held_out, work.job.folder / BEFORE)


def check_abilities(work: Work, processes: int) -> None:
    """Raises UserError with everything that this device, environment or model cannot do, before anything is begun.

    `processes` is how many processes each need a device of their own here.
    """
    settings = work.settings
    problems: list[str | Problem] = [*compatibility.problems(settings, work.project.about)]
    precision.set_deterministic(settings.tuning.deterministic)
    accelerator = precision.of(settings)
    device = accelerator.device
    dtype, family = precision.compute_dtype(accelerator), work.project.about["family"]
    for check in (
        partial(optimizers.check, settings, device),
        partial(attention.check, settings.memory.attention, device, dtype, family),
        partial(unet_weights.check, settings.memory.unet_weights, device),
        partial(rank_launcher.check, processes, device),
    ):
        try:
            check()
        except UserError as error:
            problems += error.errors
    if settings.tuning.cuda_graphs and (reason := graph.fault(device)):
        problems.append(f"tuning.cuda_graphs: {reason}; turn it off.")
    if problems:
        raise UserError(problems)


def warn_of_precision(work: Work) -> None:
    """What this device does badly is never chosen, but done where it was asked for; and why neither half precision is
    chosen is said, as a run in full precision takes more memory and time."""
    accelerator, by_weights = precision.of(work.settings), work.settings.memory.bf16_weights
    dtype, chosen = precision.compute_dtype(accelerator), work.settings.tuning.mixed_precision
    of_bf16, of_fp16 = precision.bf16_fault(accelerator.device), precision.fp16_fault(accelerator.device)
    key, do = ("memory.bf16_weights", "Turn it off.") if by_weights else ("tuning.mixed_precision", "Choose auto.")
    if reason := {torch.bfloat16: of_bf16, torch.float16: of_fp16}.get(dtype):
        work.job.warn(Problem(f"{key}: {reason}.", key, do))
    elif of_bf16 and of_fp16 and chosen == "auto":
        work.job.warn(Problem(f"{key}: auto takes full precision here, as {of_fp16}.", key))


def warn_of_room(work: Work, source: Source, dataset: Dataset) -> None:
    """Warns, before anything is loaded, where less memory of the device or of the computer is free than the run needs:
    with which settings it would need less, and that other programs hold the rest."""
    device, settings = precision.of(work.settings).device, work.settings
    model, family, area = anatomy.of(source.header), source.about.family, dataset.largest_area
    if problem := memory_warnings.of_computer(settings, model, hardware.available_bytes()):
        work.job.warn(problem)
    if device.type == "cpu":
        return
    texts = dataset.caption_schedule(settings).texts
    cached = footprint.cached_bytes(settings, model, len(texts), dataset.latent_bytes())
    free = hardware.free_bytes(device) + footprint.DRIVER_BYTES  # the driver has its own already
    if problem := memory_warnings.of_device(settings, model, family, area, free, cached=cached):
        work.job.warn(problem)


def load(work: Work, source: Source) -> tuple[Model, Any]:
    """The model on its device, in the precision and with the prompts' length of the settings, and its accelerator."""
    work.stage(recovery.LOADING, 0, 1)
    tuning, accelerator = work.settings.tuning, precision.of(work.settings)
    model = families.load(source, precision.weights_dtype(accelerator, work.settings))
    model.drawn_in = precision.compute_dtype(accelerator)
    model.traced = tuning.trace_steps
    attention.use(model.unet, work.settings.memory.attention)
    model.configure_prompts(
        tuning.max_token_length, tuning.clip_skip, tuning.pad_tokens, weighted=work.settings.captions.weighted
    )
    unet_weights.store_weights(model.unet, work.settings.memory.unet_weights, accelerator.device, work.job.warn)
    live = _live_text_encoders(work.settings, model)
    model.to(accelerator.device, aside=["vae", *(part for part in model.text_encoders if part not in live)])
    return model, accelerator


def _live_text_encoders(settings: Settings, model: Model) -> list[str]:
    """The text encoders that encode captions at every step, as their embeddings change; the others' are cached."""
    return [part for part in model.text_encoders if settings.reads_anew(part)]


def _class_pictures(work: Work, model: Model, instances: list[list[Example]]) -> list[Example]:
    plans = class_pictures.plan(work.project, work.settings, instances, work.size)
    if total := sum(plan.missing for plan in plans):
        class_pictures.inspect_existing(plans)
        make_class_pictures(work, model, plans, total)
        write_class_sheet(work, plans)
    prior = class_pictures.prior_pictures(plans)
    return pictures.prior_examples(prior, class_pictures.inspect(prior), instances)


def make_class_pictures(work: Work, model: Model, plans: list[class_pictures.Plan], total: int) -> None:
    """Draws the class pictures that are missing, `total` in all."""
    work.stage("class pictures", 0, total)

    def on_batch(done: int, total: int, last: Path) -> None:
        work.job.report("picture", path=str(last), kind="class")
        work.stage("class pictures", done, total)

    def together(plan: class_pictures.Plan) -> int:
        how, set_to = work.settings.memory.vae_decoding, work.settings.batching.class_batch_size
        work.together = drawn_together.choose(
            model, plan.sampling, len(plan.in_batches), how, set_to=set_to, before=plan.batch_size_before
        )
        return work.together

    with decoding(model, work.settings.memory.vae_decoding):
        class_pictures.make(model, plans, together, on_batch, work.stop_if_asked)


def write_class_sheet(work: Work, plans: list[class_pictures.Plan]) -> str:
    """Puts all class pictures on a sheet. Returns its file; empty where it cannot be written, which is a warning."""
    sheet = work.project.folder / _CLASS_SHEET
    try:
        preview.class_sheet(class_pictures.prior_pictures(plans), sheet)
    except OSError as error:
        work.job.warn(f"{sheet}: the sheet cannot be written ({error.strerror or error}); the job goes on without it.")
        return ""
    return str(sheet)


def _checkpoint_gradients(settings: Settings, model: Model) -> None:
    if not settings.batching.gradient_checkpointing:
        return
    checkpointing.enable(model.unet, settings.memory.checkpointed_share)
    for part in _live_text_encoders(settings, model):
        model.text_encoders[part].gradient_checkpointing_enable()


def _texts(settings: Settings, model: Model, texts: list[str]) -> Texts:
    """The embeddings of all texts. Where one of two text encoders is trained, the other's are cached by themselves."""
    live = _live_text_encoders(settings, model)
    frozen = [part for part in model.text_encoders if live and part not in live]
    return Texts(model, texts, *frozen)


def _files(examples: list[Example]) -> list[str]:
    return [str(example.picture.path) for example in examples]


def _warn_of_long_captions(work: Work, model: Model, texts: list[str]) -> None:
    long = [text for text in texts if model.is_truncated(text)]
    if long:
        length = work.settings.tuning.max_token_length
        cut = f"{len(long)} of {len(texts)} captions are cut off after {length} tokens, such as: {long[0][:80]}..."
        key = "tuning.max_token_length"
        do = f"{key} can be up to 225." if length < 225 else "Write shorter captions."
        work.job.warn(Problem(cut, key, do))
