"""Exporting what a run has learned, or has learned by one of its states: as a checkpoint, a Diffusers folder or a LoRA
file; merged at any weight into its checkpoint or another one; or as a LoRA of another rank. Weights go from file to
file one at a time; none is rounded unless half precision is asked for."""

from __future__ import annotations

import contextlib
import filecmp
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dreambooth.core import result_files, settings
from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic, paths
from dreambooth.core.job_folder import Job
from dreambooth.core.models import checkpoint
from dreambooth.core.models.model_file import CHECKPOINTS, EMBEDDINGS, Header
from dreambooth.core.project import Project, open_project
from dreambooth.core.settings import Settings
from dreambooth.engine import families, from_state
from dreambooth.engine.checkpoints import lora_extraction, original, webui_yaml, weight_deltas, words_file
from dreambooth.engine.checkpoints.diffusers_folder import write_folder
from dreambooth.engine.checkpoints.entry import Entry
from dreambooth.engine.checkpoints.source import Source, open_model, open_source
from dreambooth.engine.checkpoints.weight_deltas import Changes
from dreambooth.engine.checkpoints.write import sweep, write
from dreambooth.engine.families.pipelines import pipeline
from dreambooth.engine.prompts.textual_inversion import Vectors
from dreambooth.engine.run import outputs
from dreambooth.engine.training import adapters


@dataclass(frozen=True)
class ExportOptions:
    """What is to be written: what was learned as it is, or at the weight `merge` in its checkpoint or in `onto`,
    another one, or as a LoRA of `rank`."""

    merge: float | None = None
    onto: str = ""
    rank: int = 0
    half: bool = False

    @property
    def is_as_it_is(self) -> bool:
        return self.merge is None and not self.onto and not self.rank

    @property
    def weight(self) -> float:
        return 1.0 if self.merge is None else self.merge


@dataclass(frozen=True)
class _Learned:
    """What a file or a state holds: its changes of a model, the settings it was trained with, its precision and words
    that learned beside it."""

    changes: Callable[[Source], Changes]
    settings: Settings
    is_half: bool
    words: Vectors = field(default_factory=dict)


def run(job: Job) -> dict[str, Any]:
    """Writes `to`: a .safetensors or .ckpt file, or a new folder in the Diffusers layout."""
    fields = job.read()
    project = open_project(job.folders(), fields["model"])
    options = ExportOptions(fields["merge"], fields["onto"], fields["rank"], bool(fields["half"]))
    job.report("stage", name="exporting", done=0, total=1)
    if fields.get("from_step") is not None:
        return _of_state(job, project, fields, options)
    to = _free(fields["to"])
    embeddings, held = of_file(job, project, Path(fields["weights"] or project.source), to, options)
    return _answer(to if to.exists() else next(iter(embeddings.values())), embeddings, held)


def _answer(to: Path, embeddings: dict[str, Path], held: float | None) -> dict[str, Any]:
    """The job's result. `held` is the share of what was learned that a LoRA of another rank holds, else None."""
    return {"path": str(to), "embeddings": {word: str(file) for word, file in embeddings.items()}, "held": held}


def _free(named: str) -> Path:
    to = Path(named)
    if to.exists():
        raise UserError(f"{to}: it exists already; name another file or folder.")
    paths.make_folder(to.parent)
    sweep(to.parent)
    return to


def of_file(
    job: Job, project: Project, weights: Path, to: Path, options: ExportOptions
) -> tuple[dict[str, Path], float | None]:
    """Exports a model file. Returns the embeddings that were written, by their words, and for a LoRA of another rank
    the share of what was learned that it holds."""
    header = checkpoint.read_header(weights)
    about, words, held = checkpoint.describe(header), words_file.read(header), None
    chosen, is_lora = _settings_of(header), about.kind == "lora"
    if about.kind == "embedding":
        return _write_words(to, project, chosen, words, half=options.half), held
    if is_lora and options.is_as_it_is:
        _copy_lora(weights, to)
    elif options.is_as_it_is:
        _write(to, open_model(project, weights), {}, project, chosen, half=options.half)
    else:

        def learned(model: Source) -> Changes:
            if is_lora:
                return weight_deltas.of_lora(weights, model)
            return weight_deltas.of_result(open_model(project, weights), open_model(project), model)

        held = _write_changes(job, project, to, _Learned(learned, chosen, about.precision == "fp16", words), options)
    metadata, stem = outputs.metadata(project, chosen, to.stem, outputs.EMBEDDING), f"{to.stem}-embedding"
    return words_file.write_embeddings(to.parent, stem, project.about["family"], words, metadata), held


def _of_state(job: Job, project: Project, fields: dict[str, Any], options: ExportOptions) -> dict[str, Any]:
    """Exports what a run had learned by a state. Without `to` the file goes where the run itself would have written
    it."""
    of_run, step = Job(project.runs / f"{fields['run']:04}"), fields["from_step"]
    state = from_state.read(project, of_run, step)
    own = outputs.place(job.folders(), project, state.settings, state.images)
    to, half = _free(fields["to"] or str(own)), options.half or state.settings.saving.half_model
    embeddings, held, had_layout = dict[str, Path](), None, to.with_suffix(".yaml").exists()
    if state.settings.is_lora:
        state.settings.saving.half_model = half
        result = job.folder / own.name
        outputs.write_lora(result, project, state.settings, state.model)
        try:
            embeddings, held = of_file(job, project, result, to, options)
        finally:
            atomic.discard(result)
    elif state.settings.is_embedding:
        embeddings = _write_words(to, project, state.settings, state.model.learned_tokens(), half=options.half)
    elif options.is_as_it_is:
        _write(to, state.source, outputs.changed(state.trained), project, state.settings, half=half)
    else:
        trained = outputs.changed(state.trained)
        learned = _Learned(lambda model: weight_deltas.of_weights(trained, state.source, model), state.settings, half)
        held = _write_changes(job, project, to, learned, options)
    to = next(iter(embeddings.values())) if state.settings.is_embedding else to
    if to.is_file():  # a folder is nothing that is drawn with
        kind = "lora" if options.rank else state.settings.result_kind if options.is_as_it_is else "checkpoint"
        size, layout = to.stat().st_size, to.with_suffix(".yaml")
        beside = [layout] if kind == "checkpoint" and layout.is_file() and not had_layout else []
        files = result_files.marks([to, *embeddings.values(), *beside])
        about = {"kind": kind, "path": str(to), "bytes": size, "files": files}
        of_run.report("exported", **about, images=state.images, step=step)
    return _answer(to, embeddings, held)


def _write_words(to: Path, project: Project, chosen: Settings, words: Vectors, *, half: bool) -> dict[str, Path]:
    """Writes embeddings: of one word under the name `to`, of several under numbered names. Returns the files."""
    if to.suffix.lower() not in EMBEDDINGS:
        raise UserError(f"{to}: an embedding is one .safetensors or .pt file; name one.")
    metadata, family = outputs.metadata(project, chosen, to.stem, outputs.EMBEDDING), project.about["family"]
    return words_file.write_embeddings(to.parent, to.stem, family, words, metadata, suffix=to.suffix, half=half)


def _write_changes(job: Job, project: Project, to: Path, learned: _Learned, options: ExportOptions) -> float | None:
    """Writes what was learned into a checkpoint, or as a LoRA of another rank. Returns the share of it in a LoRA."""
    if not options.rank:
        model = open_source(Path(options.onto)) if options.onto else open_model(project)
        changed = weight_deltas.added(model, learned.changes(model), options.weight)
        _write(to, model, changed, project, learned.settings, half=options.half)
        return None
    _check_lora_file(to)
    base, dtype = open_model(project), torch.float16 if options.half or learned.is_half else torch.float32

    def report(done: int, total: int) -> None:
        if done % max(1, total // 100) == 0:
            job.report("stage", name="finding the LoRA", done=done, total=total)

    extracted = lora_extraction.extract(
        base, learned.changes(base), options.rank, fits=is_in_loras, dtype=dtype, report=report
    )
    if not extracted.tensors:
        raise UserError(f"{to}: nothing was learned that a LoRA could hold.")
    learned.settings.lora.rank = options.rank
    learned.settings.lora.alpha = float(options.rank)
    learned.settings.lora.conv_rank, learned.settings.lora.conv_alpha = 0, 0.0
    outputs.write_lora_tensors(to, project, learned.settings, extracted.tensors, learned.words)
    return extracted.held


def is_in_loras(name: str) -> bool:
    """Whether a weight is of a layer that LoRAs have, so that every WebUI knows where it belongs."""
    part, _, path = name.removesuffix(".weight").partition("/")
    layers = adapters.LORA_LAYERS["convolutions"] if part == "unet" else adapters.TEXT_ENCODER_LAYERS
    return name.endswith(".weight") and re.fullmatch(layers, path) is not None


def _settings_of(header: Header) -> Settings:
    """The settings in a result's own metadata that it was trained with; the defaults for another program's file."""
    with contextlib.suppress(ValueError, AttributeError, RecursionError, UserError):
        return settings.parse(settings.whole(json.loads(header.metadata.get("dreambooth.settings", ""))))
    return settings.parse({})


def _write(
    to: Path, source: Source, changed: dict[str, Entry], project: Project, chosen: Settings, *, half: bool
) -> None:
    model = families.skeleton(source)
    if to.suffix.lower() in CHECKPOINTS:
        about = _about(project, chosen, to.stem, source) if changed else dict(source.header.metadata)
        entries = original.trained_entries(source, changed, source.about.family, half=half)
        write(to, entries, about, beside=webui_yaml.beside(to, source, model))
    else:
        write_folder(to, pipeline(model), original.own_entries(source, changed, half=half))


def _about(project: Project, chosen: Settings, title: str, source: Source) -> dict[str, str]:
    metadata = outputs.metadata(project, chosen, title, outputs.checkpoint_kind(source), source.about.as_json())
    return {**metadata, "dreambooth.base": source.header.path.name}


def _copy_lora(weights: Path, to: Path) -> None:
    _check_lora_file(to)
    try:
        with atomic.staged(to) as staged:
            shutil.copyfile(weights, staged)
            if not filecmp.cmp(weights, staged, shallow=False):
                raise UserError(f"{to}: what was copied is not what is read back; look at the disk, and try again.")
    except OSError as error:
        raise UserError(f"{to}: the file cannot be written ({error.strerror}).") from None


def _check_lora_file(to: Path) -> None:
    if to.suffix.lower() != ".safetensors":
        raise UserError(
            f"{to}: a LoRA is one .safetensors file; name one, or merge the LoRA into its checkpoint with --merge 1."
        )
