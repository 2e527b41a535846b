"""One prompt with several results at several weights: a picture for each, as the rows and columns of a sheet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dreambooth.core import settings
from dreambooth.core.errors import Problem
from dreambooth.core.files.paths import make_folder
from dreambooth.core.job_folder import Job
from dreambooth.core.models import checkpoint
from dreambooth.core.project import Project
from dreambooth.engine import families, from_state, hardware, out_of_memory
from dreambooth.engine.checkpoints import lora, names, words_file
from dreambooth.engine.checkpoints.source import Source, open_model
from dreambooth.engine.data import png
from dreambooth.engine.drawing import drawn_together
from dreambooth.engine.drawing.sampling import NotDrawn, decoding, draw
from dreambooth.engine.drawing.sampling_choice import Sampling
from dreambooth.engine.families.model import Model
from dreambooth.engine.families.text_encoding import TextEmbedding
from dreambooth.engine.training import precision, preview


def draw_sheet(job: Job, project: Project, sampling: Sampling) -> dict[str, Any]:
    """Draws the sheet that job.json asks for, row by row, and puts it all on sheet.png. A picture is called by its row
    and column: 02-01.png.

    The base model is read once for all LoRAs and embeddings; what has no weight fills the first column only. The place
    of what is no picture stays empty; where all are none, NotDrawn is raised.
    """
    request = job.read()
    rows, columns = request["rows"], request["columns"]
    total = sum(len(columns) if _is_lora(row) else 1 for row in rows)
    folder = _free_folder(Path(request["out"]))
    chosen, drawer = settings.parse(job.settings()), _Drawer(job, sampling)
    tuning = chosen.tuning
    model, source, loaded, paths, not_drawn = None, None, None, list[str](), None
    for number, row in enumerate(rows):
        with from_state.as_file(project, job, row) as file:
            whole = file if row["kind"] == "checkpoint" else ""
            for column, weight in enumerate(columns if _is_lora(row) else columns[:1]):
                job.report("stage", name="drawing", done=len(paths), total=total)
                if model is None or source is None or loaded != whole:
                    model = source = None  # before the next is read: two would not fit
                    source, model = _load(project, whole, precision.to_draw_in(chosen))
                    model.configure_prompts(
                        tuning.max_token_length, tuning.clip_skip, tuning.pad_tokens, weighted=chosen.captions.weighted
                    )
                    model.traced = tuning.trace_steps
                    loaded = whole
                added = Path(file) if row["kind"] in ("lora", "embedding") else None
                try:
                    with _with_it(model, source, added, weight), torch.no_grad():
                        picture = drawer.draw(model)
                except NotDrawn as error:
                    not_drawn = error
                    job.warn(Problem(f"{row['label']}, {weight:g}: {error}", do="Its place on the sheet stays empty."))
                    continue
                path = folder / f"{number:02}-{column:02}.png"
                png.write_or_refuse(picture, path, "the pictures before it are kept")
                paths.append(str(path))
                job.report("picture", path=str(path), kind="generated")
    if not paths and not_drawn:
        raise not_drawn
    return {"pictures": paths, "sheet": str(_on_one(folder, rows, columns))}


class _Drawer:
    """Draws one picture after the other; where there is too little memory for one, it and all after it in tiles."""

    def __init__(self, job: Job, sampling: Sampling) -> None:
        self.job, self.request, self.sampling = job, job.read(), sampling
        self.how: str = settings.parse(job.settings()).memory.vae_decoding

    def draw(self, model: Model) -> Image.Image:
        text = model.encode_text([self.request["prompt"]])
        if self.how != "tiled":
            with out_of_memory.caught():
                return self._drawn(model, text)
            hardware.free_memory()
            self.how = drawn_together.in_tiles(self.job)
        return self._drawn(model, text)

    def _drawn(self, model: Model, text: TextEmbedding) -> Image.Image:
        with decoding(model, self.how):
            return draw(model, text, [self.request["seed"]], self.sampling)[0]


def _on_one(folder: Path, rows: list[dict[str, Any]], columns: list[float]) -> Path:
    """Puts the pictures of a folder on one labelled sheet beside them. Returns its file."""
    shown = []
    for column, weight in enumerate(columns):
        cells = {(row, 0): folder / f"{row:02}-{column:02}.png" for row in range(len(rows))}
        shown.append((f"{weight:g}", {key: path for key, path in cells.items() if path.exists()}))
    sheet = preview.sheet(shown, [(str(one["label"]), (row, 0)) for row, one in enumerate(rows)])
    png.write_or_refuse(sheet, folder / "sheet.png", "the pictures on it are kept")
    return folder / "sheet.png"


def _is_lora(row: dict[str, Any]) -> bool:
    return row["kind"] == "lora"


def _free_folder(out: Path) -> Path:
    number = 1
    while (folder := out / f"sheet-{number:03}").exists():
        number += 1
    make_folder(folder)
    return folder


def _load(project: Project, file: str, mixed_precision: str) -> tuple[Source, Model]:
    """A checkpoint, or the base model where `file` is empty, on the device."""
    accelerator = precision.accelerator(mixed_precision)
    source = open_model(project, Path(file) if file else None)
    model = families.load(source, precision.compute_dtype(accelerator))
    model.to(accelerator.device, aside=["vae", *model.text_encoders])
    return source, model


@contextmanager
def _with_it(model: Model, source: Source, path: Path | None, weight: float) -> Iterator[None]:
    """The model with a LoRA at a weight or an embedding for a while; afterwards its weights are the very same as
    before."""
    if path is None:
        yield
        return
    header = checkpoint.read_header(path)
    is_lora = checkpoint.describe(header).kind == "lora"
    layers = lora.read(path, source.tensors, source.about.family) if is_lora else {}
    kept = {
        parameter: parameter.detach().to("cpu", copy=True)  # a card may have no room for most of a model again
        for part, module in model.parts.items()
        for key, parameter in module.named_parameters()
        if f"{part}/{names.canonical_key(part, key)}" in layers
    }
    try:
        lora.add(path, layers, source, model.parts, weight)
        model.set_learned_tokens(words_file.read(header))
        yield
    finally:
        model.set_learned_tokens({})
        with torch.no_grad():
            for parameter, before in kept.items():
                parameter.copy_(before)
