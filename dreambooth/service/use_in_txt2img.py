"""What it takes to draw with a result in the WebUI, or to draw a picture again there: a prompt with the LoRA or the
embedding in it, or the checkpoint, and how the picture was drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from dreambooth.core import captions, emphasis, learned_words
from dreambooth.core.errors import UserError
from dreambooth.core.job_folder import Job
from dreambooth.core.models import checkpoint
from dreambooth.core.project import Folders, Project
from dreambooth.core.settings import Settings, parse
from dreambooth.service import pictures

# Diffusers' schedulers as the WebUIs' samplers and schedule types; what they do not have is not there.
SAMPLERS = {
    "dpm++": ("DPM++ 2M", "Uniform"),
    "dpm++_karras": ("DPM++ 2M", "Karras"),
    "dpm++_sde": ("DPM++ 2M SDE", "Uniform"),
    "dpm++_sde_karras": ("DPM++ 2M SDE", "Karras"),
    "ddim": ("DDIM", ""),
    "euler": ("Euler", ""),
    "euler_karras": ("Euler", "Karras"),
    "euler_a": ("Euler a", ""),
    "heun": ("Heun", ""),
    "kdpm2": ("DPM2", "Uniform"),
    "kdpm2_a": ("DPM2 a", "Uniform"),
    "unipc": ("UniPC", ""),
    "lms": ("LMS", ""),
    "lms_karras": ("LMS", "Karras"),
    "pndm": ("PLMS", ""),
}


@dataclass(frozen=True)
class Use:
    prompt: str
    checkpoint: str  # as the WebUI's list finds it; empty where the one that is chosen there stays
    parameters: str = ""  # how a picture was drawn, in the form that the WebUI writes into pictures and reads again


def use(folders: Folders, job: Job, result: Path) -> Use | None:
    """How the WebUI draws with a file that a run wrote; None for a file where the WebUI does not look, and of a run
    whose settings are damaged."""
    try:
        chosen = parse(job.settings())
    except UserError:
        return None
    prompt, found = _as_known(folders, taught(chosen), result, chosen.words), _weights(folders, result, 1)
    return Use(f"{prompt}{found[0]}".lstrip(), found[1]) if found else None


def use_picture(
    folders: Folders, opened: Project, asked: Mapping[str, Any], seed: int, result: str, weight: float
) -> Use | None:
    """How the WebUI draws a picture again that a job drew with `result` (a file; empty for the model before training).

    `asked` is the job's folder's job.json. None for what the WebUI cannot draw, as it does not have the weights or they
    are Imagic's.
    """
    weights = Path(result) if result else opened.source
    found = _weights(folders, weights, weight)
    if found is None or opened.embedding(weights).exists():
        return None
    prompt = f"{_as_known(folders, asked['prompt'], weights)}{found[0]}"
    sampler, schedule = SAMPLERS.get(asked.get("scheduler", ""), (asked.get("sampler", ""), ""))
    drawn = {
        "Steps": asked["steps"],
        "Sampler": sampler,
        "Schedule type": schedule,
        "CFG scale": f"{asked['guidance_scale']:g}",
        "Seed": seed,
        "Size": f"{asked['width'] or opened.resolution}x{asked['height'] or opened.resolution}",
    }
    lines = [prompt, f"Negative prompt: {negative}" if (negative := asked["negative_prompt"]) else ""]
    lines.append(", ".join(f"{key}: {value}" for key, value in drawn.items() if value != ""))
    return Use(prompt, found[1], "\n".join(line for line in lines if line))


def _as_known(folders: Folders, prompt: str, file: Path, learned: Sequence[str] = ()) -> str:
    """The prompt with the words that learned with a LoRA or alone as the WebUI knows them. `learned` are those that the
    run of an embedding knows of, as a .pt says nothing of its own; an embedding is in the prompt in any case."""
    is_embedding = file.is_relative_to(folders.embeddings)
    if not is_embedding and not file.is_relative_to(folders.loras):
        return prompt
    try:
        metadata = _metadata(file, file.stat().st_mtime_ns)
    except (OSError, UserError):
        return prompt  # a file that is gone or damaged has no words
    called = learned_words.names(file, metadata)
    if not is_embedding:
        return learned_words.in_webui(prompt, called, folders.embeddings)
    called = called or ({learned[0]: file.stem} if len(learned) == 1 else {})
    known_prompt = learned_words.in_webui(prompt, called, file.parent)
    return (
        known_prompt
        if learned_words.is_in(known_prompt, file.stem)
        else f"{known_prompt}, {file.stem}".removeprefix(", ")
    )


@lru_cache(maxsize=500)
def _metadata(file: Path, changed: int) -> Mapping[str, str]:
    """What a file says of itself. It is asked for whenever the page looks."""
    return checkpoint.read_header(file).metadata


def _weights(folders: Folders, file: Path, weight: float) -> tuple[str, str] | None:
    """The LoRA's tag, or the checkpoint as the WebUI's list finds it; of an embedding, whose name the prompt has,
    neither. None for a file where the WebUI does not look."""
    linked = folders.checkpoints / file.name  # a link there to a file elsewhere is what people keep large files with
    if linked.exists() and linked.resolve() == file:
        return "", file.name
    for checkpoints in (folders.checkpoints, folders.checkpoints.resolve()):
        if file.is_relative_to(checkpoints):
            return "", str(file.relative_to(checkpoints))
    if file.is_relative_to(folders.embeddings):
        return "", ""
    return (f" <lora:{file.stem}:{weight:g}>", "") if file.is_relative_to(folders.loras) else None


def taught(settings: Settings) -> str:
    """A prompt to try a run's result with: the first of its previews, or else what its first picture was called."""
    first = next(filter(None, map(str.strip, settings.previews.prompts.split(";"))), "")
    if first and captions.FILEWORDS not in first:
        return first
    for concept in (replace(one, instance_prompt=first or one.instance_prompt) for one in settings.concepts):
        folder = Path(concept.instance_data_dir).expanduser()
        found = pictures.names(folder) if captions.FILEWORDS in concept.instance_prompt else []
        try:
            words = captions.instance_words(concept, folder / (found[0] if found else "none"))
        except UserError:
            continue
        if variants := captions.variants(words, captions.steady(settings.captions), settings.general.seed):
            return variants[0] if settings.captions.weighted else emphasis.for_webui(variants[0])
    return ""
