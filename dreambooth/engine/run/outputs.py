"""Writing what a run has learned where the WebUI finds it: a checkpoint, a LoRA or embeddings, with its settings."""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dreambooth import __version__
from dreambooth.core import learned_words, schema
from dreambooth.core.files import atomic
from dreambooth.core.models.model_file import SUFFIXES
from dreambooth.core.project import Folders, Project
from dreambooth.core.schema import to_flat
from dreambooth.core.settings import Settings
from dreambooth.core.settings.method import Lora
from dreambooth.engine.checkpoints import lora, names, original, webui_yaml, words_file
from dreambooth.engine.checkpoints.entry import Entry
from dreambooth.engine.checkpoints.source import Source
from dreambooth.engine.checkpoints.write import free_name, sweep, write_tensors
from dreambooth.engine.checkpoints.write import write as write_file
from dreambooth.engine.families.model import Model
from dreambooth.engine.prompts.textual_inversion import Vectors
from dreambooth.engine.training.adapters import Trained

_ARCHITECTURES = {
    ("sd1", "epsilon"): "stable-diffusion-v1",
    ("sd1", "v_prediction"): "stable-diffusion-v1",
    ("sd2", "epsilon"): "stable-diffusion-v2-512",
    ("sd2", "v_prediction"): "stable-diffusion-v2-768-v",
    ("sdxl", "epsilon"): "stable-diffusion-xl-v1-base",
    ("sdxl", "v_prediction"): "stable-diffusion-xl-v1-base",
}
_IMPLEMENTATION = "https://github.com/Stability-AI/generative-models"
EMBEDDING, _INPAINTING = "/textual-inversion", "/inpainting"  # behind the architecture, as ModelSpec has it
_KOHYA_VERSIONS = {
    ("sd1", "epsilon"): "sd_v1",
    ("sd1", "v_prediction"): "sd_v1_v",
    ("sd2", "epsilon"): "sd_v2",
    ("sd2", "v_prediction"): "sd_v2_v",
    ("sdxl", "epsilon"): "sdxl_base_v1-0",
    ("sdxl", "v_prediction"): "sdxl_base_v1-0",
}
_KERNEL_PIXELS = 9  # of a 3x3 convolution
_RANKED = ("lora_down.weight", "hada_w1_b", "lokr_w2_b")  # tensors whose first side is their layer's rank
_DYNAMIC = "Dynamic"


@dataclass(frozen=True)
class Saved:
    """The files of a result."""

    path: Path  # a checkpoint, a LoRA, or the first of the embeddings where these are all that is trained
    embeddings: dict[str, Path]  # by the word that each is of


def save(
    folders: Folders, project: Project, settings: Settings, model: Model, source: Source, trained: Trained, images: int
) -> Saved:
    """Writes the model as it is now, under a name of its own; never over another file. Raises UserError if it cannot
    be written."""
    target = place(folders, project, settings, images)
    about = metadata(project, settings, target.stem, EMBEDDING)
    folder = target.parent if settings.is_embedding else folders.embeddings
    embeddings = words_file.write_embeddings(folder, target.stem, model.family, model.learned_tokens(), about)
    if settings.is_embedding:
        _touch(folders.embeddings)
        return Saved(next(iter(embeddings.values())), embeddings)
    try:
        write(target, project, settings, model, source, trained)
    except BaseException:  # also where a person discards the run
        for file in embeddings.values():
            atomic.discard(file)
        raise
    return Saved(target, embeddings)


def write(target: Path, project: Project, settings: Settings, model: Model, source: Source, trained: Trained) -> None:
    """Writes the trained model as a checkpoint, a LoRA or an embedding. Raises UserError if it cannot be written."""
    if settings.is_lora:
        write_lora(target, project, settings, model)
        return
    if settings.is_embedding:
        words, about = model.learned_tokens(), metadata(project, settings, target.stem, EMBEDDING)
        words_file.write_embedding(target, model.family, words, next(iter(words)), about)
        return
    entries = original.trained_entries(source, changed(trained), model.family, half=settings.saving.half_model)
    about = metadata(project, settings, target.stem, checkpoint_kind(source))
    write_file(target, entries, about, beside=webui_yaml.beside(target, source, model))


def place(folders: Folders, project: Project, settings: Settings, images: int) -> Path:
    """A free file name for the result after so many images, in the folder where the WebUI looks for it. The names of
    several embeddings begin with it.

    A name is taken if a file of either of the two folders that results can go to has it, as a WebUI knows a LoRA or an
    embedding by its name alone; if an embedding of another result has it; and, for a checkpoint, if any checkpoint or
    .yaml has it, as a .yaml counts for all checkpoints of its name.
    """
    name = f"{settings.saving.custom_model_name or project.name}_{images}"
    suffix = f".{settings.saving.checkpoint_format}" if settings.is_full else ".safetensors"
    folder, count = project.results(folders, settings), len(settings.words)
    other = folder.parent if settings.saving.use_subdirectory else folder / project.name

    def is_taken(stem: str) -> bool:
        places = [folders.embeddings, folders.embeddings / project.name]
        names = [f"{learned_words.stem(stem, number, count)}.safetensors" for number in range(count)]
        embeddings = [place / name for place in places for name in names]
        checkpoints = [folder / f"{stem}{one}" for one in (*SUFFIXES, ".yaml")] if settings.is_full else []
        return any(path.exists() for path in (other / f"{stem}{suffix}", *embeddings, *checkpoints))

    return free_name(folder, name, suffix, is_taken)


def write_lora(target: Path, project: Project, settings: Settings, model: Model) -> None:
    """Writes the adapters of a model as a LoRA file, with the embeddings of words that were trained with them."""
    tensors = lora.lora_tensors(model.parts, model.family, half=settings.saving.half_model)
    write_lora_tensors(target, project, settings, tensors, model.learned_tokens())


def write_lora_tensors(
    target: Path, project: Project, settings: Settings, tensors: dict[str, Tensor], words: Vectors
) -> None:
    """Writes a LoRA file of these tensors, with the embeddings of words that were trained with it."""
    about = {
        **metadata(project, settings, target.stem, "/lora"),
        **_kohya(project, settings, target.stem),
        **_network_size(tensors, settings.lora),
        **words_file.metadata(words),
    }
    about |= _module(tensors, settings.lora)
    if settings.saving.embedding_in_lora:
        tensors = {**tensors, **words_file.bundled(words, project.about["family"])}
    write_tensors(target, tensors, about)


def changed(trained: Trained) -> dict[str, Entry]:
    """The weights that were trained, by their names in the part's own layout."""
    return {
        f"{part}/{names.canonical_key(part, key)}": Entry.of(parameter)
        for part, parameters in trained.parts.items()
        for key, parameter in parameters.items()
    }


def _touch(embeddings: Path) -> None:
    """Updates the time of the embeddings' folder, by which WebUIs notice new files; a file in a subfolder does not."""
    with contextlib.suppress(OSError):
        os.utime(embeddings)


def remove_abandoned(folders: Folders) -> None:
    """Removes half-written files of engines that were killed; those of running engines stay."""
    for place in (folders.checkpoints, folders.loras, folders.embeddings):
        for folder in (place, *place.glob("*/")):
            sweep(folder)


def checkpoint_kind(source: Source) -> str:
    """What ModelSpec appends to the architecture of a checkpoint."""
    return _INPAINTING if source.about.inpainting else ""


def metadata(
    project: Project, settings: Settings, title: str, kind: str, about: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """A file's metadata: ModelSpec, which WebUIs and model sites read, and the settings. `about` describes the model
    that is written, where that may be another than the project's."""
    about = about or project.about
    side, v = about["resolution"], about["prediction_type"] == "v_prediction"
    return {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": _ARCHITECTURES[about["family"], about["prediction_type"]] + kind,
        "modelspec.implementation": _IMPLEMENTATION if kind in ("", _INPAINTING) else "diffusers",
        "modelspec.title": title,
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.prediction_type": "v" if v else "epsilon",
        "modelspec.date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "dreambooth.version": __version__,
        "dreambooth.base": project.source.name,
        "dreambooth.settings": json.dumps(schema.shareable(Settings, to_flat(settings)), ensure_ascii=False),
    }


def _kohya(project: Project, settings: Settings, title: str) -> dict[str, str]:
    """The metadata by which WebUIs show a LoRA and choose its loader."""
    family = project.about["family"]
    return {
        "ss_base_model_version": _KOHYA_VERSIONS[family, project.about["prediction_type"]],
        "ss_v2": str(family == "sd2"),
        "ss_sd_model_name": project.source.name,
        "ss_clip_skip": str(settings.tuning.clip_skip),
        "ss_max_token_length": str(settings.tuning.max_token_length),
        "ss_output_name": title,
    }


def _network_size(tensors: Mapping[str, Tensor], chosen: Lora) -> dict[str, str]:
    """The rank and alpha of a LoRA's linear layers. One that was trained further has those of the LoRA that it began
    as, whatever the settings say; `Dynamic` where they differ, as kohya's scripts have it."""
    rank, alpha = str(chosen.rank), str(chosen.alpha)
    if chosen.start_file.strip():
        ranks, alphas = set[str](), set[str]()
        for name, tensor in tensors.items():
            layer, _, what = name.partition(".")
            if what in _RANKED and math.prod(tensor.shape[2:]) == 1:  # not of a 3x3 convolution, which has its own
                ranks.add(str(tensor.shape[0]))
                alphas.add(str(float(tensors[f"{layer}.alpha"])))
        rank, alpha = (next(iter(one)) if len(one) == 1 else _DYNAMIC for one in (ranks, alphas))
    return {"ss_network_dim": rank, "ss_network_alpha": alpha}


def _module(tensors: Mapping[str, Any], chosen: Lora) -> dict[str, str]:
    """The network module and arguments with which kohya's scripts or LyCORIS would have made a LoRA of this kind."""
    arguments, endings = dict[str, Any](), {name.rpartition(".")[2] for name in tensors}
    if "dora_scale" in endings:
        arguments = {"algo": "lora", "dora_wd": True}
    elif "weight" not in endings:
        algorithms = {"hada_w1_a": "loha", "oft_blocks": "diag-oft"}
        arguments = {"algo": next((name for ending, name in algorithms.items() if ending in endings), "lokr")}
    module = "lycoris.kohya" if arguments else "networks.lora"
    if (chosen.conv_rank or chosen.conv_alpha) and not chosen.start_file.strip():
        arguments |= dict(zip(("conv_dim", "conv_alpha"), chosen.size(_KERNEL_PIXELS)))
    return {"ss_network_module": module, **({"ss_network_args": json.dumps(arguments)} if arguments else {})}
