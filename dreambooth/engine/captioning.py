"""Captions for pictures, by a captioning model that says what each of them shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dreambooth.core.caption_writing import Describe, caption_pictures
from dreambooth.core.errors import Problem, UserError
from dreambooth.core.job_folder import Job
from dreambooth.core.models import captioner_folder, hub
from dreambooth.engine import download, hardware, out_of_memory
from dreambooth.engine.data import decoding
from dreambooth.engine.training import precision
from dreambooth.engine.work import Work

_MOST_TOKENS = 40  # of a caption
_BEAMS = 3
_INVENTED = re.compile(r"\baraf\w*\s*")  # words such as "arafed", which mean nothing and BLIP says nevertheless


def run(job: Job) -> dict[str, Any]:
    """Captions the pictures that job.json names. Returns what `caption_pictures` does."""
    work = Work.open(job)

    def prepare() -> Describe:
        captioner = Captioner(_folder(work, job.read()["captioner"]), job)
        return lambda path: _describe(job, captioner, path)

    return caption_pictures(job, work.settings, prepare)


def _describe(job: Job, captioner: Captioner, path: Path) -> str:
    """What a picture shows; empty, with a warning, for one that is damaged or of which the model says nothing."""
    try:
        picture = decoding.decode(path)
    except UserError as error:
        job.warn(error.and_then("It got no caption."))
        return ""
    if not (text := captioner.describe(picture)):
        job.warn(Problem(f"{path}: the captioning model says nothing of it.", str(path), "Write a caption."))
    return text


def _folder(work: Work, named: str) -> Path:
    """The folder of the captioning model; one of the hub is fetched where it is not here yet.

    Raises UserError for one that cannot be fetched, or is of another kind.
    """
    if Path(named).is_dir():
        folder = Path(named)
    else:
        model = hub.parse(named)
        assert model is not None, "the service has let it pass"
        folder = work.folders.downloads / model.folder_name
        if not _is_complete(folder):
            download.fetch(work.job, model, folder)
    captioner_folder.check(folder)
    return folder


def _is_complete(folder: Path) -> bool:
    try:
        captioner_folder.check(folder)
    except UserError:
        return False
    return True


class Captioner:
    """A captioning model on the device. Raises UserError where the folder's model cannot be loaded."""

    def __init__(self, folder: Path, job: Job) -> None:
        job.report("stage", name="loading the captioning model", done=0, total=1)
        from transformers import AutoModelForImageTextToText, AutoProcessor

        accelerator = precision.accelerator()
        self._device, self._dtype = accelerator.device, precision.compute_dtype(accelerator)
        try:
            self._processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
            model = AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True, dtype=self._dtype)
        except Exception as error:  # whatever the library raises for files that do not fit together
            if out_of_memory.is_out_of_memory(error):
                raise
            reason = out_of_memory.first_line(error)
            raise UserError(f"{folder}: this captioning model cannot be loaded ({reason}); name another.") from None
        self._model = model.to(self._device).eval()

    @torch.no_grad()
    def describe(self, picture: Image.Image) -> str:
        """What a picture in RGB shows; empty where the model says nothing of it."""
        pixels = self._processor(images=picture, return_tensors="pt")["pixel_values"]
        pixels = hardware.brought(pixels.to(self._dtype), self._device)
        tokens = self._model.generate(
            pixel_values=pixels, max_new_tokens=_MOST_TOKENS, num_beams=_BEAMS, do_sample=False
        )
        text = self._processor.batch_decode(tokens, skip_special_tokens=True)[0]
        return " ".join(_INVENTED.sub("", text).split())
