"""The pictures of a run: found, captioned and inspected; those that cannot be used are named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from dreambooth.core import captions, focal_point, picture_files, validation
from dreambooth.core.buckets import grid
from dreambooth.core.errors import UserError
from dreambooth.core.focal_point import FocalPoint
from dreambooth.core.settings import Settings
from dreambooth.core.settings.dataset import Concept
from dreambooth.engine.data import cropping, inspection
from dreambooth.engine.data.cropping import Crop
from dreambooth.engine.data.inspection import Inspection


@dataclass(frozen=True)
class Picture:
    """One picture of the training set."""

    path: Path
    prompt: str  # its caption; core.captions says which texts that stands for
    concept: int
    point: FocalPoint | None = None  # that a person has chosen for its crop


@dataclass(frozen=True)
class Example:
    """One variant of one picture, as it is trained on."""

    picture: Picture
    cut: Crop


@dataclass(frozen=True)
class Gathered:
    """All pictures of a run, the inspection of each, and a sentence for each problem that stops the run."""

    pictures: list[Picture]
    looks: list[Inspection]
    problems: list[str]

    def usable(self) -> list[Picture]:
        """The pictures. Raises UserError with all problems."""
        if self.problems:
            raise UserError(self.problems)
        return self.pictures


def gather(concepts: list[Concept], on_look: Callable[[int, int], None] = lambda done, total: None) -> Gathered:
    """Finds and inspects the pictures of all concepts; `on_look(done, total)` is called after each."""
    problems: list[str] = []
    pictures: list[Picture] = []
    for number, concept in enumerate(concepts):
        problems += picture_files.problems_of(concept, number)
        for path in picture_files.of_concept(concept):
            point, problem = _chosen(path)
            problems += problem
            try:
                pictures.append(Picture(path, captions.instance_words(concept, path), number, point))
            except UserError as error:
                problems += error.problems
    looks = inspection.inspect_all([p.path for p in pictures], lambda done: on_look(done, len(pictures)))
    return Gathered(pictures, looks, problems + [seen.error for seen in looks if seen.error])


def _chosen(path: Path) -> tuple[FocalPoint | None, list[str]]:
    """The point that was chosen for a picture, and what is wrong with its file."""
    try:
        return focal_point.read(path), []
    except UserError as error:
        return None, error.problems


def imagic_problem(settings: Settings, count: int) -> str:
    """Why Imagic cannot take so many pictures; empty if it can."""
    if not settings.imagic.enabled or count == 1:
        return ""
    return f"imagic.enabled: it edits one picture, but there are {count}; leave one in the folder."


def seen_each_epoch(some: Iterable[Picture], concepts: list[Concept]) -> int:
    """How many pictures an epoch has: each as often as its concept's repeats."""
    return sum(concepts[picture.concept].repeats for picture in some)


def examples(gathered: Gathered, settings: Settings, size: int) -> list[list[Example]]:
    """The variants of each picture at the resolution `size`; none of one that cannot be read.

    Raises UserError if the settings allow no bucket.
    """
    buckets, variants = grid(settings.pictures, size), []
    for picture, seen in zip(gathered.pictures, gathered.looks):
        if seen.error:
            variants.append([])
            continue
        extent = (seen.width, seen.height)
        bucket = buckets.bucket(*extent)
        choice, seed = settings.pictures, settings.general.seed
        cuts = cropping.cuts(picture.path.name, extent, bucket, choice, seed, seen.small, picture.point)
        variants.append([Example(picture, cut) for cut in cuts])
    return variants


def kept_examples(instances: list[list[Example]], settings: Settings) -> list[Example]:
    """Training pictures as class pictures, of concepts with prior preservation by the base model's prediction.

    Raises UserError where a picture's class prompt is its own.
    """
    kept, seed = list[Example](), settings.general.seed
    for variants in filter(None, instances):
        picture = variants[0].picture
        concept = settings.concepts[picture.concept]
        if concept.class_mode != "prediction":
            continue
        words = class_text(settings, picture)
        if words in captions.variants(picture.prompt, captions.steady(settings.captions), seed):
            key = f"concepts.{picture.concept}.class_prompt"
            raise UserError(
                f"{key}: it reads {words!r} for {picture.path.name}, as its own prompt does, so that nothing could be "
                "learned; leave the word for your subject out of it."
            )
        kept += [Example(replace(picture, prompt=words), example.cut) for example in variants]
    return kept


def class_text(settings: Settings, picture: Picture) -> str:
    """The caption of a training picture as a class picture."""
    concept = settings.concepts[picture.concept]
    line = captions.file_words(picture.path).split("\n")[0] if captions.FILEWORDS in concept.class_prompt else ""
    words, options = captions.class_words(concept, line), captions.of_class(settings.captions)
    return captions.variants(words, options, settings.general.seed)[0]


def held_out(candidates: list[Picture], settings: Settings) -> set[Picture]:
    """The validation pictures, which are not trained on."""
    chosen = set()
    for number, concept in enumerate(settings.concepts):
        own = {picture.path: picture for picture in candidates if picture.concept == number}
        chosen |= {own[path] for path in picture_files.held_out(concept, list(own), settings.general.seed)}
    return chosen


def mirrored(instances: list[list[Example]], most: int) -> list[Example]:
    """Mirror images of at most `most` pictures, evenly spread over all."""
    chosen = [instances[n][0] for n in validation.spread(len(instances), most)]
    return [replace(example, cut=replace(example.cut, mirrored=True)) for example in chosen]


def prior_examples(priors: list[Picture], looks: list[Inspection], instances: list[list[Example]]) -> list[Example]:
    """Class pictures in the buckets of the training pictures, in the same shares.

    The widest go into the widest bucket, so that the least is cut off. Where a bucket would get none, it shares one
    with its neighbour.
    """
    cropped = []
    for concept in sorted({picture.concept for picture in priors}):
        own = [n for n, picture in enumerate(priors) if picture.concept == concept]
        own.sort(key=lambda n: looks[n].width / looks[n].height)
        used = Counter(variants[0].cut.bucket for variants in instances if variants[0].picture.concept == concept)
        total, before = used.total(), 0
        for bucket in sorted(used, key=lambda bucket: bucket.width / bucket.height):
            first, after = before * len(own) // total, -(-(before + used[bucket]) * len(own) // total)
            before += used[bucket]
            cropped += [
                Example(priors[n], cropping.centred((looks[n].width, looks[n].height), bucket))
                for n in sorted(own[first:after])
            ]
    return cropped
