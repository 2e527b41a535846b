"""What it takes to draw with a result in the WebUI: a prompt that was taught with the LoRA in it, or the checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dreambooth.core import captions
from dreambooth.core.errors import UserError
from dreambooth.core.project import Folders
from dreambooth.core.run import Job
from dreambooth.core.settings import Settings, parse
from dreambooth.service import pictures


@dataclass(frozen=True)
class Use:
    prompt: str
    checkpoint: str  # as the WebUI's list finds it; empty where the one that is chosen there stays


def use(folders: Folders, job: Job, result: Path) -> Use | None:
    """How the WebUI draws with a file that a run wrote; None for a file where the WebUI does not look."""
    prompt = taught(parse(job.settings()))
    if result.is_relative_to(folders.checkpoints):
        return Use(prompt, str(result.relative_to(folders.checkpoints)))
    if result.is_relative_to(folders.loras):
        return Use(f"{prompt} <lora:{result.stem}:1>".lstrip(), "")
    return None


def taught(settings: Settings) -> str:
    """A prompt to try a run's result with: the first of its previews, or else what its first picture was called."""
    for prompt in settings.previews.prompts.split(";"):
        if prompt.strip():
            return prompt.strip()
    for concept in settings.concepts:
        folder = Path(concept.instance_data_dir).expanduser()
        found = pictures.names(folder) if captions.FILEWORDS in concept.instance_prompt else []
        try:
            words = captions.instance_words(concept, folder / (found[0] if found else "none"))
        except UserError:
            continue
        if said := captions.variants(words, settings.captions, settings.general.seed):
            return said[0]
    return ""
