"""Previews during a run, and the contact sheet that they grow into: a row a prompt, a column a moment."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from dreambooth.core import captions, picture_files, validation
from dreambooth.core.files import atomic
from dreambooth.core.picture_opening import open_picture
from dreambooth.core.settings import Settings
from dreambooth.core.settings.dataset import Concept
from dreambooth.engine import hardware
from dreambooth.engine.data import png
from dreambooth.engine.data.pictures import Picture
from dreambooth.engine.drawing import drawn_together
from dreambooth.engine.drawing.sampling import Known, decoding, draw
from dreambooth.engine.drawing.sampling_choice import Sampling
from dreambooth.engine.families.model import Model
from dreambooth.engine.families.text_encoding import TextEmbedding
from dreambooth.engine.training import imagic

_NAME = "{images:08}-{prompt:02}-{number:02}.png"
_PATTERN = re.compile(r"(\d{8})-(\d{2})-(\d{2})\.png")
_CELL, _GAP, _LABEL = 160, 6, 22  # pixels
_CLASS_COLUMNS, _CLASS_LINES = 8, 40


def prompts(settings: Settings) -> list[str]:
    """What previews show: the prompts of the settings, in which [filewords] is the caption of each concept's first
    picture; or else what that picture and its class are read with."""
    chosen: list[str] = []
    for prompt in filter(None, map(str.strip, settings.previews.prompts.split(";"))):
        if captions.FILEWORDS in prompt:
            for concept in settings.concepts:
                chosen += _instance_words(replace(concept, instance_prompt=prompt), settings)
        else:
            chosen.append(prompt)
    if not chosen:
        for concept in settings.concepts:
            chosen += [*_instance_words(concept, settings), *_class_words(concept, settings)]
    return list(dict.fromkeys(chosen))


def shown(settings: Settings) -> list[tuple[str, float | None]]:
    """What is drawn: each prompt, for Imagic at several places between the picture (0) and the prompt (1)."""
    etas: tuple[float | None, ...] = imagic.PREVIEW_ETAS if settings.imagic.enabled else (None,)
    return [(prompt, eta) for prompt in prompts(settings) for eta in etas]


def _first(concept: Concept) -> Path:
    folder = concept.instance_data_dir.strip()
    return next(iter(picture_files.find(Path(folder).expanduser())), Path(folder)) if folder else Path("none")


def _instance_words(concept: Concept, settings: Settings) -> tuple[str, ...]:
    """What the concept's first picture is read with; nothing where there is no prompt for it."""
    if not concept.instance_prompt.strip():
        return ()
    words, options = captions.instance_words(concept, _first(concept)), captions.steady(settings.captions)
    return captions.variants(words, options, settings.general.seed)[:1]


def _class_words(concept: Concept, settings: Settings) -> tuple[str, ...]:
    if not concept.class_prompt.strip():
        return ()
    words = captions.class_words(concept, captions.file_words(_first(concept)).split("\n")[0])
    return captions.variants(words, captions.of_class(settings.captions), settings.general.seed)[:1]


def make(
    model: Model,
    settings: Settings,
    folder: Path,
    images: int,
    size: int,
    *,
    fitted: TextEmbedding | None = None,
    paths: list[Path] | None = None,
    on_step: Callable[[], None] | None = None,
) -> list[Path]:
    """Draws the previews of this moment and saves them; the model is left in the mode it was in.

    `fitted` is the text that Imagic has fitted to its picture. `on_step` may end it by an exception. Each picture that
    is done is added to `paths`, and with the same list again it goes on from there.
    """
    paths = [] if paths is None else paths
    what, choice = shown(settings), settings.previews
    wanted = [(p, n) for p in range(len(what)) for n in range(choice.count)]
    sampling, batch = _sampling(settings, size), together(model, settings, size)
    folder.mkdir(exist_ok=True)
    atomic.sweep(folder)
    known = Known(model)
    kept = hardware.random_numbers_kept(model.device)
    with kept, decoding(model, settings.memory.vae_decoding), model.evaluated():
        for start in range(len(paths), len(wanted), batch):
            some = wanted[start : start + batch]
            text = _text(known, [what[p] for p, _ in some], fitted)
            drawn = draw(model, text, [choice.seed + n for _, n in some], sampling, on_step, known)
            for (prompt, number), picture in zip(some, drawn):
                path = folder / _NAME.format(images=images, prompt=prompt, number=number)
                png.write(picture, path)
                paths.append(path)
    return paths


def together(model: Model, settings: Settings, size: int) -> int:
    """How many previews are drawn at a time: what is set, or as many as there is room for now."""
    wanted, how = len(shown(settings)) * settings.previews.count, settings.memory.vae_decoding
    set_to = settings.batching.class_batch_size
    return drawn_together.choose(model, _sampling(settings, size), wanted, how, set_to=set_to)


def _sampling(settings: Settings, size: int) -> Sampling:
    choice = settings.previews
    width, height = choice.width or size, choice.height or size
    return Sampling(width, height, choice.steps, choice.guidance_scale, choice.negative_prompt, choice.scheduler)


@torch.no_grad()
def _text(known: Known, some: list[tuple[str, float | None]], fitted: TextEmbedding | None) -> TextEmbedding:
    text = known.read([prompt for prompt, _ in some])
    if fitted is None:
        return text
    return TextEmbedding.cat(
        [imagic.interpolate(text[n : n + 1], fitted, eta or 0.0) for n, (_, eta) in enumerate(some)]
    )


def found(folder: Path) -> dict[int, dict[tuple[int, int], Path]]:
    """The previews in a folder: {images seen: {(prompt, number): path}}."""
    moments: dict[int, dict[tuple[int, int], Path]] = {}
    for path in sorted(folder.glob("*.png")):
        if match := _PATTERN.fullmatch(path.name):
            images, prompt, number = map(int, match.groups())
            moments.setdefault(images, {})[prompt, number] = path
    return moments


def labels(settings: Settings) -> list[str]:
    """What each row of previews is drawn with, for people."""
    return [prompt if eta is None else f"{eta:g} of the way to: {prompt}" for prompt, eta in shown(settings)]


def rows(settings: Settings) -> list[tuple[str, tuple[int, int]]]:
    """The rows of a sheet: the prompt, and which preview of it."""
    return [(label, (p, n)) for p, label in enumerate(labels(settings)) for n in range(settings.previews.count)]


def contact_sheet(
    folder: Path, settings: Settings, target: Path, *, most_columns: int = 8, best: int | None = None
) -> None:
    """Puts the previews of a run on one sheet: rows prompts, columns images seen. That of its best moment is marked."""
    there = found(folder)
    moments = validation.thinned(sorted(there), most_columns, best)
    columns = [(_moment(images, is_best=images == best), there[images]) for images in moments]
    png.write(sheet(columns, rows(settings)), target)


def _moment(images: int, *, is_best: bool) -> str:
    return f"{images:,} pictures seen{', best' if is_best else ''}" if images else "before"


def sheet(
    columns: list[tuple[str, dict[tuple[int, int], Path]]], rows: list[tuple[str, tuple[int, int]]]
) -> Image.Image:
    """A labelled grid of pictures; a missing one leaves its cell empty."""
    width = _GAP + len(columns) * (_CELL + _GAP)
    image = Image.new("RGB", (width, _LABEL + len(rows) * (_LABEL + _CELL + _GAP)), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    for column, (label, _) in enumerate(columns):
        pen.text((_GAP + column * (_CELL + _GAP), 4), label, fill="black", font=font)
    for row, (word, key) in enumerate(rows):
        top = _LABEL + row * (_LABEL + _CELL + _GAP)
        pen.text((_GAP, top + 4), word, fill="dimgray", font=font)
        for column, (_, pictures) in enumerate(columns):
            if key in pictures:
                with open_picture(pictures[key]) as picture:
                    enlarged = picture.convert("RGB").resize((_CELL, _CELL), Image.Resampling.LANCZOS)
                image.paste(enlarged, (_GAP + column * (_CELL + _GAP), top + _LABEL))
    return image


def class_sheet(pictures: Iterable[Picture], target: Path) -> None:
    """Puts class pictures on one sheet, some lines for each prompt; at most so many lines."""
    by_prompt: dict[str, list[Path]] = {}
    for picture in pictures:
        by_prompt.setdefault(picture.prompt, []).append(picture.path)
    columns: list[dict[tuple[int, int], Path]] = [{} for _ in range(_CLASS_COLUMNS)]
    lines: list[tuple[str, tuple[int, int]]] = []
    for number, (prompt, paths) in enumerate(by_prompt.items()):
        for place, path in enumerate(paths):
            key = (number, place // _CLASS_COLUMNS)
            if place % _CLASS_COLUMNS == 0:
                lines.append((prompt, key))
            columns[place % _CLASS_COLUMNS][key] = path
    png.write(sheet([("", column) for column in columns if column], lines[:_CLASS_LINES]), target)
