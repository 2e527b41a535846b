"""Pictures from a prompt: with the base model, a trained checkpoint, an embedding, or a LoRA at any weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dreambooth.core import settings
from dreambooth.core.files import file_names
from dreambooth.core.files.paths import make_folder
from dreambooth.core.job_folder import Job
from dreambooth.core.models import checkpoint
from dreambooth.core.project import Project, open_project
from dreambooth.engine import families, from_state, hardware, out_of_memory
from dreambooth.engine.checkpoints import lora, words_file
from dreambooth.engine.checkpoints.source import open_model
from dreambooth.engine.data import png
from dreambooth.engine.drawing import drawn_together, sheet
from dreambooth.engine.drawing.sampling import Known, decoding, draw
from dreambooth.engine.drawing.sampling_choice import Sampling
from dreambooth.engine.families.model import Model
from dreambooth.engine.families.text_encoding import TextEmbedding
from dreambooth.engine.run import imagic
from dreambooth.engine.training import precision


def run(job: Job) -> dict[str, Any]:
    """Draws what job.json asks for into its folder. Returns the paths."""
    request = job.read()
    project = open_project(job.folders(), request["model"])
    width, height = request["width"] or project.resolution, request["height"] or project.resolution
    sampling = Sampling(
        width, height, request["steps"], request["guidance_scale"], request["negative_prompt"], request["scheduler"]
    )
    chosen = settings.parse(job.settings())
    tuning = chosen.tuning
    job.report("stage", name="loading the model", done=0, total=1)
    if "rows" in request:
        return sheet.draw_sheet(job, project, sampling)
    with from_state.as_file(project, job, request) as weights:
        model = load(project, weights, request["lora_weight"], precision.to_draw_in(chosen))
    model.configure_prompts(
        tuning.max_token_length, tuning.clip_skip, tuning.pad_tokens, weighted=chosen.captions.weighted
    )
    model.traced = tuning.trace_steps
    folder, count, how = Path(request["out"]), request["count"], chosen.memory.vae_decoding
    make_folder(folder)
    text, known = _text(model, project, request), Known(model)
    batch = drawn_together.choose(model, sampling, count, how, set_to=request["batch"])
    paths: list[str] = []
    while len(paths) < count:
        job.report("stage", name="drawing", done=len(paths), total=count)
        seeds = [request["seed"] + n for n in range(len(paths), min(count, len(paths) + batch))]
        many, fewer = text[torch.zeros(len(seeds), dtype=torch.long)], batch > 1 and not request["batch"]
        with decoding(model, how):
            drawn = _drawn(model, many, seeds, sampling, known, may_fail=fewer or how != "tiled")
        if drawn is None:
            hardware.free_memory()
            batch, how = (batch // 2, how) if fewer else (batch, drawn_together.in_tiles(job))
            continue
        for seed, picture in zip(seeds, drawn):
            path = file_names.of_drawn(folder, seed)
            png.write_or_refuse(picture, path, "those before it are kept")
            paths.append(str(path))
            job.report("picture", path=str(path), kind="generated")
    return {"pictures": paths}


def _drawn(
    model: Model, text: TextEmbedding, seeds: list[int], sampling: Sampling, known: Known, *, may_fail: bool
) -> list[Image.Image] | None:
    """None where there was too little memory and that may be."""
    try:
        return draw(model, text, seeds, sampling, known=known)
    except (RuntimeError, MemoryError) as error:
        if not may_fail or not out_of_memory.is_out_of_memory(error):
            raise
    return None


def load(project: Project, weights: str, lora_weight: float = 1.0, mixed_precision: str = "auto") -> Model:
    """The model with `weights` (a checkpoint, LoRA or embedding; empty for the base model), on the device."""
    path = Path(weights)
    accelerator = precision.accelerator(mixed_precision)
    header = checkpoint.read_header(path) if weights else None
    kind = checkpoint.describe(header).kind if header is not None else "base"
    source = open_model(project, None if kind in ("base", "lora", "embedding") else path)
    layers = lora.read(path, source.tensors, source.about.family) if kind == "lora" else {}
    model = families.load(source, precision.compute_dtype(accelerator))
    lora.add(path, layers, source, model.parts, lora_weight)
    model.set_learned_tokens(words_file.read(header) if header else {})
    model.to(accelerator.device, aside=["vae", *model.text_encoders])
    return model


@torch.no_grad()
def _text(model: Model, project: Project, request: dict[str, Any]) -> TextEmbedding:
    """What is read, (1, ...): the prompt, for a result of Imagic blended with the text that was fitted to its picture.

    Raises UserError where that is asked for and cannot be.
    """
    prompt, eta, result = request["prompt"], request.get("eta"), Path(request["weights"])
    if eta is None and imagic.load_target_prompt(project, result) is not None:
        eta = imagic.ETA
    if eta is not None:
        return imagic.load_embedding(model, project, result, prompt, eta)
    return model.encode_text([prompt])
