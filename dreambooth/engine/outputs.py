"""Writing what a run has learned where the WebUI finds it: a checkpoint or a LoRA, with its settings inside."""

from __future__ import annotations

import datetime
import json
import shutil
from pathlib import Path

from torch import Tensor

from dreambooth import __version__
from dreambooth.core.project import Folders, Project
from dreambooth.core.settings import Settings, to_flat
from dreambooth.engine.checkpoints import lora
from dreambooth.engine.checkpoints.write import free_name, write_checkpoint, write_tensors
from dreambooth.engine.families.sd1 import Sd1
from dreambooth.engine.training.adapters import Trained


def save(folders: Folders, project: Project, settings: Settings, model: Sd1, trained: Trained, images: int) -> Path:
    """Writes the model as it is now, under a name of its own; never over another file."""
    name = f"{settings.saving.custom_model_name or project.name}_{images}"
    if settings.is_lora:
        target = free_name(folders.loras, name)
        tensors = lora.lora_tensors(model.unet, model.text_encoder, half=settings.saving.half_model)
        write_tensors(
            target,
            tensors,
            {**_metadata(project, settings, target.stem, "/lora"), **_kohya(project, settings, target.stem)},
        )
        return target
    target = free_name(folders.checkpoints, name)
    metadata = _metadata(project, settings, target.stem, "")
    write_checkpoint(
        target, project.source, _trained_tensors(model, trained), metadata, half=settings.saving.half_model
    )
    layout = project.source.with_suffix(".yaml")
    if layout.exists():  # the WebUI reads an unusual layout from the file beside the checkpoint
        shutil.copyfile(layout, target.with_suffix(".yaml"))
    return target


def _trained_tensors(model: Sd1, trained: Trained) -> dict[str, Tensor]:
    """{original key: tensor} of the parts that were trained."""
    tensors = {theirs: model.unet.get_parameter(ours) for ours, theirs in model.unet_keys().items()}
    if trained.text_encoder:
        tensors.update(
            {theirs: model.text_encoder.get_parameter(ours) for ours, theirs in model.text_encoder_keys().items()}
        )
    return tensors


def _metadata(project: Project, settings: Settings, title: str, kind: str) -> dict[str, str]:
    side = project.resolution
    return {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"stable-diffusion-v1{kind}",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models" if not kind else "diffusers",
        "modelspec.title": title,
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.prediction_type": "epsilon",
        "modelspec.date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "dreambooth.version": __version__,
        "dreambooth.base": project.source.name,
        "dreambooth.settings": json.dumps(_shareable(settings), ensure_ascii=False),
    }


def _kohya(project: Project, settings: Settings, title: str) -> dict[str, str]:
    """The keys that WebUIs show for a LoRA and choose its loader by."""
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(settings.lora.rank),
        "ss_network_alpha": str(settings.lora.alpha),
        "ss_base_model_version": "sd_v1",
        "ss_sd_model_name": project.source.name,
        "ss_output_name": title,
    }


def _shareable(settings: Settings) -> dict[str, object]:
    """The settings without the folders of this machine: files are passed on to others."""
    return {key: value for key, value in to_flat(settings).items() if not key.endswith("_dir")}
