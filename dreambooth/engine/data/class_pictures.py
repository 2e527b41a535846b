"""Class pictures for prior preservation: drawn by the base model, or those of a folder as they are.

Those that are drawn are kept in a folder whose name is a hash of everything that they depend on, so that another prompt
or model never uses them, and the same one does not draw them again. A picture's seed follows from its prompt and
number, so that drawing can be interrupted and gives the same pictures. The file holds the prompt that it was drawn
with, which is its caption in training.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dreambooth.core import captions, picture_files
from dreambooth.core.buckets import Bucket
from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic
from dreambooth.core.models import checkpoint
from dreambooth.core.picture_opening import open_picture
from dreambooth.core.project import Project
from dreambooth.core.schema import to_flat
from dreambooth.core.settings import Settings
from dreambooth.core.settings.dataset import Captions, Concept
from dreambooth.engine.data import inspection, pictures, png
from dreambooth.engine.data.inspection import Inspection
from dreambooth.engine.data.pictures import Example
from dreambooth.engine.drawing.sampling_choice import Sampling

if TYPE_CHECKING:
    from dreambooth.engine.families.model import Model

# Keys of a PNG's text: its prompt, and the size of the batch that it was drawn in.
_PROMPT, _BATCH_SIZE = "dreambooth.prompt", "dreambooth.together"


@dataclass(frozen=True)
class NewPicture:
    """A class picture to be drawn."""

    path: Path
    prompt: str
    seed: int


@dataclass(frozen=True)
class Plan:
    """The class pictures of one concept in one size: those that are in the folder, and those that are missing."""

    concept: int
    folder: Path
    existing: list[pictures.Picture]  # also those that will exist by then, as they are drawn for an earlier concept
    to_draw: list[NewPicture]  # the missing ones
    sampling: Sampling
    # All, also the existing ones, in the order of their batches; empty for a person's own folder.
    all_drawn: list[NewPicture] = field(default_factory=list)

    @property
    def wanted(self) -> int:
        return len(self.existing) + len(self.to_draw)

    @property
    def missing(self) -> int:
        return len(self.to_draw)

    @property
    def in_order(self) -> list[pictures.Picture]:
        """All of them, in the order in which they are found once none is missing: a run that is resumed must train on
        them as it did before."""
        new = [pictures.Picture(one.path, one.prompt, self.concept) for one in self.to_draw]
        order = {one.path: number for number, one in enumerate(self.all_drawn)}
        if order:
            return sorted([*self.existing, *new], key=lambda picture: order[picture.path])
        return sorted([*self.existing, *new], key=lambda picture: picture_files.name_order(self.folder, picture.path))

    @property
    def in_batches(self) -> list[NewPicture]:
        """The pictures in the order of their batches; a batch of which none is missing is not drawn."""
        return self.all_drawn or self.to_draw

    @property
    def batch_size_before(self) -> int:
        """The batch size that the existing ones were drawn with; 0 where that is not known."""
        text = next((text for picture in self.existing if (text := _png_text(picture.path, _BATCH_SIZE))), "")
        return int(text) if text.isascii() and text.isdigit() else 0


def plan(project: Project, settings: Settings, instances: list[list[Example]], size: int) -> list[Plan]:
    """What each concept with class pictures needs; draws nothing.

    They are drawn in the buckets of the training pictures, as many in each; in a person's own folder, square. A file
    that several concepts use is drawn for the first of them. Raises UserError for a class folder that is to be used as
    it is and holds no pictures.
    """
    plans = []
    for number, concept in enumerate(settings.concepts):
        own = [variants[0] for variants in instances if variants and variants[0].picture.concept == number]
        square = Bucket(size, size)
        if concept.class_mode == "folder":
            plans.append(_as_it_is(settings, number, square))
        elif concept.class_mode == "fill" and concept.num_class_images_per:
            if concept.class_data_dir.strip():
                plans.append(_filled(settings, number, own, square))
                continue
            for bucket in dict.fromkeys(example.cut.bucket for example in own):
                of_bucket = [example for example in own if example.cut.bucket == bucket]
                plans.append(_drawn(project, settings, number, of_bucket, bucket))
    return _without_repeats(plans)


def make(
    model: Model,
    plans: list[Plan],
    batch_size: Callable[[Plan], int],
    on_batch: Callable[[int, int, Path], None],
    on_step: Callable[[], None],
) -> None:
    """Draws what is missing, in batches of `batch_size(plan)`. `on_batch(done, total, last)` is called after each batch
    and `on_step` in each sampling step; both may raise to stop.

    The batch a picture is drawn in shows in its last bits. So that a picture drawn after an interruption is the same as
    without it, the existing ones of its batch are drawn again with it, and dropped.
    """
    from dreambooth.engine.drawing.sampling import Known, draw  # loads torch, which a plan does not need

    known = Known(model)
    total, done = sum(plan.missing for plan in plans), 0
    for plan in plans:
        atomic.sweep(plan.folder)
        missing, size = {new.path for new in plan.to_draw}, batch_size(plan) if plan.to_draw else 1
        for start in range(0, len(plan.in_batches), size):
            batch = plan.in_batches[start : start + size]
            if missing.isdisjoint(new.path for new in batch):
                continue
            prompts, seeds = [new.prompt for new in batch], [new.seed for new in batch]
            images = draw(model, prompts, seeds, plan.sampling, on_step, known)
            kept = [(image, new) for image, new in zip(images, batch) if new.path in missing]
            for image, new in kept:
                _save(image, new, size)
            done += len(kept)
            on_batch(done, total, kept[-1][1].path)


def prior_pictures(plans: list[Plan]) -> list[pictures.Picture]:
    """The class pictures that training uses, after `make`."""
    return [picture for plan in plans for picture in plan.in_order]


def inspect_existing(plans: list[Plan]) -> None:
    """Inspects those that are there, before others are drawn. Raises UserError with all that cannot be read."""
    inspect([picture for plan in plans for picture in plan.existing if picture.path.exists()])


def inspect(priors: list[pictures.Picture]) -> list[Inspection]:
    """What is known of class pictures, in their order. Raises UserError with all that cannot be read."""
    inspected = inspection.inspect_all(picture.path for picture in priors)
    if problems := [seen.error for seen in inspected if seen.error]:
        raise UserError(problems)
    return inspected


def _without_repeats(plans: list[Plan]) -> list[Plan]:
    """The plans, in which each file is drawn by the first that needs it and counts as existing in the others."""
    planned: dict[Path, NewPicture] = {}
    unique = []
    for plan in plans:
        repeated = [planned[new.path] for new in plan.to_draw if new.path in planned]
        existing = [*plan.existing, *(pictures.Picture(one.path, one.prompt, plan.concept) for one in repeated)]
        to_draw = [new for new in plan.to_draw if new.path not in planned]
        planned.update({new.path: new for new in to_draw})
        unique.append(replace(plan, existing=existing, to_draw=to_draw))
    return unique


def _as_it_is(settings: Settings, number: int, bucket: Bucket) -> Plan:
    """A folder whose pictures are used as they are."""
    concept = settings.concepts[number]
    folder = Path(concept.class_data_dir).expanduser()
    files = picture_files.find(folder) if folder.is_dir() else []
    if not files:
        raise UserError(
            f"concepts.{number}.class_data_dir: there are no pictures in {folder}; name the folder with your class "
            "pictures, or set class_mode to fill to have them made."
        )
    return Plan(number, folder, _existing(files, settings, number), [], _sampling(concept, bucket))


def _filled(settings: Settings, number: int, own: list[Example], bucket: Bucket) -> Plan:
    """A person's own folder, in which missing pictures are drawn."""
    concept, seed = settings.concepts[number], settings.general.seed
    prompts = _prompts(concept, own, settings.captions, seed)
    folder = Path(concept.class_data_dir).expanduser()
    files = picture_files.find(folder)[: len(prompts)] if folder.is_dir() else []
    existing, to_draw = _existing(files, settings, number), _topped_up(folder, prompts, len(files), seed)
    return Plan(number, folder, existing, to_draw, _sampling(concept, bucket))


def _drawn(project: Project, settings: Settings, number: int, own: list[Example], bucket: Bucket) -> Plan:
    """Pictures that are drawn for the training pictures `own` of one bucket."""
    concept, seed = settings.concepts[number], settings.general.seed
    sampling = _sampling(concept, bucket)
    prompts = _prompts(concept, own, settings.captions, seed)
    folder = _folder(project, settings, concept, sampling)
    all_drawn = _numbered(folder, prompts, concept, seed)
    existing = [pictures.Picture(one.path, one.prompt, number) for one in all_drawn if one.path.exists()]
    return Plan(number, folder, existing, [one for one in all_drawn if not one.path.exists()], sampling, all_drawn)


def _prompts(concept: Concept, own: list[Example], options: Captions, seed: int) -> list[str]:
    """The prompt of each class picture: the class prompt, with the training pictures' captions for [filewords]."""
    prompts = []
    for example in own:
        lines = (
            captions.file_words(example.picture.path).split("\n")
            if captions.FILEWORDS in concept.class_prompt
            else [""]
        )
        for turn in range(concept.num_class_images_per):
            text = captions.class_words(concept, lines[turn % len(lines)])
            prompts.append(_chosen(text, options, seed, len(prompts)))
    return prompts


def _chosen(text: str, options: Captions, seed: int, place: int | str) -> str:
    """The text of the picture at `place`, or of the file of that name, of those that a text with {a|b} or several lines
    stands for."""
    texts = captions.variants(text, captions.of_class(options), seed)
    return texts[captions.pick(len(texts), seed, place)]


def _numbered(folder: Path, prompts: list[str], concept: Concept, seed: int) -> list[NewPicture]:
    """A file and a seed for each prompt that depend on nothing but the prompt and how often it came before."""
    numbered, count = [], Counter[str]()
    plain = captions.class_words(concept, "")
    for prompt in prompts:
        turn = count[prompt]
        count[prompt] += 1
        if prompt == plain:
            numbered.append(NewPicture(folder / f"class-{turn:05}.png", prompt, seed + turn))
        else:
            mark = hashlib.sha256(prompt.encode()).hexdigest()[:8]
            own_seed = (seed + int(mark, 16) + turn) % 2**31
            numbered.append(NewPicture(folder / f"class-{mark}-{turn:05}.png", prompt, own_seed))
    return numbered


def _topped_up(folder: Path, prompts: list[str], existing: int, seed: int) -> list[NewPicture]:
    """What is drawn beside so many existing pictures, under the first free numbers."""
    new: list[NewPicture] = []
    number = 0
    while existing + len(new) < len(prompts):
        path = folder / f"class-{number:05}.png"
        if not path.exists():
            new.append(NewPicture(path, prompts[number % len(prompts)], seed + number))
        number += 1
    return new


def _existing(files: list[Path], settings: Settings, number: int) -> list[pictures.Picture]:
    """Pictures of a class folder, each with the prompt that it was drawn with, or else the class prompt."""
    concept, existing = settings.concepts[number], list[pictures.Picture]()
    for path in files:
        caption = captions.file_words(path).split("\n")[0] if captions.FILEWORDS in concept.class_prompt else ""
        words = captions.class_words(concept, caption)
        prompt = _png_text(path, _PROMPT) or _chosen(words, settings.captions, settings.general.seed, path.name)
        existing.append(pictures.Picture(path, prompt, number))
    return existing


def _png_text(path: Path, key: str) -> str:
    """A text of a picture's own file; empty where it has none."""
    try:
        with open_picture(path) as image:
            return str(image.info.get(key, ""))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return ""  # named as damaged when all class pictures are checked


def _save(picture: Image.Image, new: NewPicture, batch_size: int) -> None:
    words = PngInfo()
    words.add_itxt(_PROMPT, new.prompt)
    words.add_text(_BATCH_SIZE, str(batch_size))
    png.write_or_refuse(picture, new.path, "those that are there are kept", words)


def _sampling(concept: Concept, bucket: Bucket) -> Sampling:
    return Sampling(
        bucket.width,
        bucket.height,
        concept.class_infer_steps,
        concept.class_guidance_scale,
        concept.class_negative_prompt,
    )


def _folder(project: Project, settings: Settings, concept: Concept, sampling: Sampling) -> Path:
    depends_on = [
        checkpoint.fingerprint(project.source),
        to_flat(project.origin),
        concept.class_prompt.strip(),
        asdict(sampling),
        settings.general.seed,
        settings.tuning.max_token_length,
        settings.tuning.clip_skip,
        settings.tuning.pad_tokens,
        *(["weights"] if settings.captions.weighted else []),
    ]
    key = hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:16]
    return project.class_pictures / key
