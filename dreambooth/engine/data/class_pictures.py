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
from dreambooth.engine.data import pictures, png
from dreambooth.engine.data.pictures import Example
from dreambooth.engine.drawing.sampling_choice import Sampling

if TYPE_CHECKING:
    from dreambooth.engine.families.model import Model

# Keys of a PNG's text: its prompt, and the size of the batch that it was drawn in.
_PROMPT, _TOGETHER = "dreambooth.prompt", "dreambooth.together"


@dataclass(frozen=True)
class Wanted:
    """A class picture to be drawn."""

    path: Path
    prompt: str
    seed: int


@dataclass(frozen=True)
class Plan:
    """The class pictures of one concept in one size: those that are in the folder, and those that are missing."""

    concept: int
    folder: Path
    there: list[pictures.Picture]  # or will be by then, as they are drawn for a concept before this one
    to_make: list[Wanted]
    sampling: Sampling
    drawn_together: list[Wanted] = field(
        default_factory=list
    )  # all, in the order of their batches; empty for a person's folder

    @property
    def wanted(self) -> int:
        return len(self.there) + len(self.to_make)

    @property
    def missing(self) -> int:
        return len(self.to_make)

    @property
    def in_order(self) -> list[pictures.Picture]:
        """All of them, in the order in which they are found once none is missing: a run that is resumed must train on
        them as it did before."""
        made = [pictures.Picture(wanted.path, wanted.prompt, self.concept) for wanted in self.to_make]
        order = {wanted.path: number for number, wanted in enumerate(self.drawn_together)}
        if order:
            return sorted([*self.there, *made], key=lambda picture: order[picture.path])
        return sorted([*self.there, *made], key=lambda picture: picture_files.name_order(self.folder, picture.path))

    @property
    def drawn(self) -> list[Wanted]:
        """What batches are made of; a batch that has none missing is not drawn."""
        return self.drawn_together or self.to_make

    @property
    def together_before(self) -> int:
        """The batch size that those in the folder were drawn with; 0 where that is not known."""
        text = next((text for picture in self.there if (text := _text_of(picture.path, _TOGETHER))), "")
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
    together: Callable[[Plan], int],
    on_batch: Callable[[int, int, Path], None],
    on_step: Callable[[], None],
) -> None:
    """Draws what is missing, in batches of `together(plan)`. `on_batch(done, total, last)` is called after each batch
    and `on_step` in each sampling step; both may raise to stop.

    The batch a picture is drawn in shows in its last bits. So that a picture drawn after an interruption is the same as
    without it, those of its batch that are there are drawn again, beside it.
    """
    from dreambooth.engine.drawing.sampling import Known, draw  # loads torch, which a plan does not need

    known = Known(model)
    total, done = sum(p.missing for p in plans), 0
    for plan in plans:
        atomic.sweep(plan.folder)
        missing, size = {wanted.path for wanted in plan.to_make}, together(plan) if plan.to_make else 1
        for start in range(0, len(plan.drawn), size):
            batch = plan.drawn[start : start + size]
            if missing.isdisjoint(wanted.path for wanted in batch):
                continue
            drawn = draw(model, [w.prompt for w in batch], [w.seed for w in batch], plan.sampling, on_step, known)
            new = [(picture, wanted) for picture, wanted in zip(drawn, batch) if wanted.path in missing]
            for picture, wanted in new:
                _save(picture, wanted, size)
            done += len(new)
            on_batch(done, total, new[-1][1].path)


def prior_pictures(plans: list[Plan]) -> list[pictures.Picture]:
    """The class pictures that training uses, after `make`."""
    return [picture for plan in plans for picture in plan.in_order]


def _without_repeats(plans: list[Plan]) -> list[Plan]:
    """The plans, in which each file is drawn by the first that wants it and counts as there in the others."""
    planned: dict[Path, Wanted] = {}
    unique = []
    for plan in plans:
        repeated = [planned[wanted.path] for wanted in plan.to_make if wanted.path in planned]
        there = [*plan.there, *(pictures.Picture(one.path, one.prompt, plan.concept) for one in repeated)]
        to_make = [wanted for wanted in plan.to_make if wanted.path not in planned]
        planned.update({wanted.path: wanted for wanted in to_make})
        unique.append(replace(plan, there=there, to_make=to_make))
    return unique


def _as_it_is(settings: Settings, number: int, bucket: Bucket) -> Plan:
    """A folder whose pictures are used as they are."""
    concept = settings.concepts[number]
    folder = Path(concept.class_data_dir).expanduser()
    found = picture_files.find(folder) if folder.is_dir() else []
    if not found:
        raise UserError(
            f"concepts.{number}.class_data_dir: there are no pictures in {folder}; name the folder with your class "
            "pictures, or set class_mode to fill to have them made."
        )
    return Plan(number, folder, _found(found, settings, number), [], _sampling(concept, bucket))


def _filled(settings: Settings, number: int, own: list[Example], bucket: Bucket) -> Plan:
    """A person's own folder, in which missing pictures are drawn."""
    concept, seed = settings.concepts[number], settings.general.seed
    prompts = _prompts(concept, own, settings.captions, seed)
    folder = Path(concept.class_data_dir).expanduser()
    found = picture_files.find(folder)[: len(prompts)] if folder.is_dir() else []
    there, missing = _found(found, settings, number), _topped_up(folder, prompts, len(found), seed)
    return Plan(number, folder, there, missing, _sampling(concept, bucket))


def _drawn(project: Project, settings: Settings, number: int, own: list[Example], bucket: Bucket) -> Plan:
    """Pictures that are drawn for the training pictures `own` of one bucket."""
    concept, seed = settings.concepts[number], settings.general.seed
    sampling = _sampling(concept, bucket)
    prompts = _prompts(concept, own, settings.captions, seed)
    folder = _folder(project, settings, concept, sampling)
    all_wanted = _numbered(folder, prompts, concept, seed)
    there = [pictures.Picture(w.path, w.prompt, number) for w in all_wanted if w.path.exists()]
    return Plan(number, folder, there, [w for w in all_wanted if not w.path.exists()], sampling, all_wanted)


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


def _numbered(folder: Path, prompts: list[str], concept: Concept, seed: int) -> list[Wanted]:
    """A file and a seed for each prompt that depend on nothing but the prompt and how often it came before."""
    wanted, count = [], Counter[str]()
    plain = captions.class_words(concept, "")
    for prompt in prompts:
        turn = count[prompt]
        count[prompt] += 1
        if prompt == plain:
            wanted.append(Wanted(folder / f"class-{turn:05}.png", prompt, seed + turn))
        else:
            mark = hashlib.sha256(prompt.encode()).hexdigest()[:8]
            own_seed = (seed + int(mark, 16) + turn) % 2**31
            wanted.append(Wanted(folder / f"class-{mark}-{turn:05}.png", prompt, own_seed))
    return wanted


def _topped_up(folder: Path, prompts: list[str], there: int, seed: int) -> list[Wanted]:
    """What is drawn beside pictures that are there, under the first free numbers."""
    wanted: list[Wanted] = []
    number = 0
    while there + len(wanted) < len(prompts):
        path = folder / f"class-{number:05}.png"
        if not path.exists():
            wanted.append(Wanted(path, prompts[number % len(prompts)], seed + number))
        number += 1
    return wanted


def _found(paths: list[Path], settings: Settings, number: int) -> list[pictures.Picture]:
    """Pictures of a class folder, each with the prompt that it was drawn with, or else the class prompt."""
    concept, found = settings.concepts[number], list[pictures.Picture]()
    for path in paths:
        caption = captions.file_words(path).split("\n")[0] if captions.FILEWORDS in concept.class_prompt else ""
        words = captions.class_words(concept, caption)
        prompt = _text_of(path, _PROMPT) or _chosen(words, settings.captions, settings.general.seed, path.name)
        found.append(pictures.Picture(path, prompt, number))
    return found


def _text_of(path: Path, key: str) -> str:
    """A text of a picture's own file; empty where it has none."""
    try:
        with open_picture(path) as image:
            return str(image.info.get(key, ""))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return ""  # named as damaged when all class pictures are checked


def _save(picture: Image.Image, wanted: Wanted, together: int) -> None:
    words = PngInfo()
    words.add_itxt(_PROMPT, wanted.prompt)
    words.add_text(_TOGETHER, str(together))
    png.write_or_refuse(picture, wanted.path, "those that are there are kept", words)


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
