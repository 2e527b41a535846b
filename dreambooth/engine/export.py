"""Exporting what a run has learned, or has learned by one of its states: as a checkpoint, a LoRA file, a LoRA merged
into its checkpoint, or a Diffusers folder. Weights go from file to file one at a time; none is rounded unless half
precision is asked for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from dreambooth.core import settings
from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic
from dreambooth.core.models import checkpoint
from dreambooth.core.models.model_file import PICKLES
from dreambooth.core.project import Folders, Project, open_project
from dreambooth.core.run import Job
from dreambooth.engine import families, from_state
from dreambooth.engine.checkpoints import lora, original, webui_yaml, words_file
from dreambooth.engine.checkpoints.diffusers_folder import write_folder
from dreambooth.engine.checkpoints.entry import Entry
from dreambooth.engine.checkpoints.lora_layers import AnyLayer
from dreambooth.engine.checkpoints.source import Source, open_model
from dreambooth.engine.checkpoints.write import write
from dreambooth.engine.families.pipelines import pipeline
from dreambooth.engine.run import outputs


def run(job: Job) -> dict[str, Any]:
    """Writes `to`: a .safetensors or .ckpt file, or a new folder in the Diffusers layout."""
    wanted = job.read()
    project = open_project(Folders(Path(wanted["models"])), wanted["model"])
    job.report("stage", name="exporting", done=0, total=1)
    if wanted.get("from_step") is not None:
        return _answer(*_of_state(job, project, wanted))
    to = _free(wanted["to"])
    weights = Path(wanted["weights"] or project.source)
    return _answer(to, _of_file(project, weights, to, wanted["merge"], half=bool(wanted["half"])))


def _answer(to: Path, embeddings: dict[str, Path]) -> dict[str, Any]:
    return {"path": str(to), "embeddings": {word: str(file) for word, file in embeddings.items()}}


def _free(named: str) -> Path:
    to = Path(named)
    if to.exists():
        raise UserError(f"{to}: it exists already; name another file or folder.")
    to.parent.mkdir(parents=True, exist_ok=True)
    return to


def _of_file(project: Project, weights: Path, to: Path, merge: float | None, *, half: bool) -> dict[str, Path]:
    """Returns the embeddings that were written beside it, of a LoRA with words that learned with it."""
    header = checkpoint.read_header(weights)
    is_lora = checkpoint.describe(header).kind == "lora"
    words = words_file.read(header)
    if is_lora and merge is None:
        _copy_lora(weights, to)
    else:
        source = open_model(project, None if is_lora else weights)
        changed = merged(source, weights, merge or 0.0) if is_lora else {}
        _write(to, source, changed, project, settings.parse({}), half=half)
    about = outputs.metadata(project, settings.parse({}), to.stem, "/textual-inversion")
    return words_file.write_embeddings(to.parent, f"{to.stem}-embedding", project.about["family"], words, about)


def _of_state(job: Job, project: Project, wanted: dict[str, Any]) -> tuple[Path, dict[str, Path]]:
    """Without a name the file lies where the run itself would have written it."""
    of_run, step = Job(project.runs / f"{wanted['run']:04}"), wanted["from_step"]
    learned = from_state.read(project, of_run, step)
    own = outputs.place(Folders(Path(wanted["models"])), project, learned.settings, learned.images)
    to = _free(wanted["to"] or str(own))
    half, embeddings = bool(wanted["half"]) or learned.settings.saving.half_model, dict[str, Path]()
    if not learned.settings.is_lora:
        _write(to, learned.source, outputs.changed(learned.trained), project, learned.settings, half=half)
    else:
        learned.settings.saving.half_model = half
        result = job.folder / own.name
        outputs.write_lora(result, project, learned.settings, learned.model)
        try:
            embeddings = _of_file(project, result, to, wanted["merge"], half=bool(wanted["half"]))
        finally:
            result.unlink()
    if to.is_file():  # a folder is nothing that is drawn with
        kind = "lora" if learned.settings.is_lora and wanted["merge"] is None else "checkpoint"
        size = to.stat().st_size
        of_run.report("exported", kind=kind, path=str(to), bytes=size, images=learned.images, step=step)
    return to, embeddings


def merged(source: Source, path: Path, weight: float) -> dict[str, Entry]:
    """The weights that a LoRA file changes, with the change added when their turn comes."""
    layers = lora.read(path, source.tensors, source.about.family)

    def change(name: str, layer: AnyLayer) -> Entry:
        def summed() -> Tensor:
            plain = source.read(name).float()
            return plain + weight * lora.fitting_change(path, name, layer, plain)

        plain = source.read(name)
        lora.fitting_change(path, name, layer, plain)
        return Entry(plain.dtype, tuple(plain.shape), summed)

    return {name: change(name, layer) for name, layer in layers.items()}


def _write(
    to: Path, source: Source, changed: dict[str, Entry], project: Project, chosen: settings.Settings, *, half: bool
) -> None:
    model = families.skeleton(source)
    if to.suffix in (".safetensors", ".ckpt"):
        about = outputs.metadata(project, chosen, to.stem, "") if changed else dict(source.header.metadata)
        with webui_yaml.beside(to, source, model):
            write(to, original.trained_entries(source, changed, model.family, half=half), about)
    elif to.suffix in PICKLES or to.suffix in (".yaml", ".json", ".zip"):
        raise UserError(f"{to}: name a .safetensors or .ckpt file, or a folder for the Diffusers layout.")
    else:
        write_folder(to, pipeline(model), original.own_entries(source, changed, half=half))


def _copy_lora(weights: Path, to: Path) -> None:
    if to.suffix != ".safetensors":
        raise UserError(
            f"{to}: this model was trained as a LoRA, which is one .safetensors file; name one, or merge the LoRA into "
            "its checkpoint with --merge 1."
        )
    try:
        with atomic.staged(to) as staged:
            shutil.copyfile(weights, staged)
            checkpoint.read_header(weights)
    except OSError as error:
        raise UserError(f"{to}: the file cannot be written ({error.strerror}).") from None
