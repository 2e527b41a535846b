"""Exporting what a run has learned: a copy of its file, or a Diffusers folder."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from dreambooth.core import checkpoint
from dreambooth.core.errors import UserError
from dreambooth.core.project import Folders, open_project
from dreambooth.core.run import Job
from dreambooth.engine.families import sd1
from dreambooth.engine.sampling import make_scheduler
from dreambooth.engine.vocabulary import write_vocabulary


def run(job: Job) -> dict[str, Any]:
    """Writes `to`: a .safetensors file, or a new folder in the Diffusers layout."""
    wanted = job.read()
    project = open_project(Folders(Path(wanted["models"])), wanted["model"])
    weights, to = Path(wanted["weights"] or project.source), Path(wanted["to"])
    if to.exists():
        raise UserError(f"{to}: it exists already; name another file or folder.")
    job.report("stage", name="exporting", done=0, total=1)
    to.parent.mkdir(parents=True, exist_ok=True)
    if to.suffix == ".safetensors":
        _copy(weights, to)
    elif to.suffix:
        raise UserError(f"{to}: only .safetensors files and Diffusers folders can be written.")
    elif checkpoint.describe(checkpoint.read_header(weights)).kind == "lora":
        raise UserError(f"{to}: this model was trained as a LoRA, which is one file; name a .safetensors file.")
    else:
        _diffusers_folder(sd1.load(weights, project.resolution), to)
    return {"path": str(to)}


def _copy(source: Path, to: Path) -> None:
    staged = to.with_name(f".{to.name}.tmp")
    try:
        shutil.copyfile(source, staged)
        checkpoint.read_header(staged)
        staged.rename(to)
    except OSError as error:
        raise UserError(f"{to}: the file cannot be written ({error.strerror}).") from None
    finally:
        staged.unlink(missing_ok=True)
    if source.with_suffix(".yaml").exists():
        shutil.copyfile(source.with_suffix(".yaml"), to.with_suffix(".yaml"))


def _diffusers_folder(model: sd1.Sd1, to: Path) -> None:
    """The folder that `StableDiffusionPipeline.from_pretrained` reads, with the vocabulary files of older readers."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        vae=model.vae,
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        unet=model.unet,
        scheduler=make_scheduler("pndm"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    staged = Path(tempfile.mkdtemp(prefix=".exporting-", dir=to.parent))
    try:
        pipeline.save_pretrained(staged, safe_serialization=True)
        write_vocabulary(staged / "tokenizer")
        staged.chmod(0o755)
        staged.rename(to)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
