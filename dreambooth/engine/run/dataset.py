"""The pictures that a run works with: those that it learns, those of the class, and those that it only looks at."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from dreambooth.core import forecast
from dreambooth.core.errors import Problem, UserError
from dreambooth.core.memory import footprint
from dreambooth.core.settings import Settings
from dreambooth.core.validation import MOST_MEASURED
from dreambooth.engine import hardware, out_of_memory
from dreambooth.engine.data import cache, inpainting_latents, inpainting_masks, masks, pictures
from dreambooth.engine.data.batch_order import Slot
from dreambooth.engine.data.cache import Encoded
from dreambooth.engine.data.caption_schedule import CaptionSchedule
from dreambooth.engine.data.latent_store import Store
from dreambooth.engine.data.pictures import Example, Picture
from dreambooth.engine.families import offload
from dreambooth.engine.families.model import Model
from dreambooth.engine.work import Work

Encode = Callable[[], "list[Encoded | None]"]

_ROOM = 1.05  # of what encoding is known to take, for gaps


@dataclass
class EncodedDataset:
    """All pictures of a run, encoded."""

    own: Encoded
    priors: Encoded | None
    held_out: Encoded | None


@dataclass
class Dataset:
    """`instances` are the variants of each picture that is learned, `held_out` what is only looked at, mirror images
    too, `kept` the learned ones as pictures of a class that is kept by prediction, `cut` the masks of all that are
    learned and then of those held out, where masks are used."""

    instances: list[list[Example]]
    held_out: list[Example]
    kept: list[Example]
    cut: list[Tensor | None] | None
    priors: list[Example] = field(default_factory=list)  # the class's

    @classmethod
    def gather(cls, work: Work) -> Dataset:
        """Everything but drawn pictures of the class. Raises UserError for what will not do."""
        settings = work.settings
        gathered = pictures.gather(settings.concepts, partial(work.stage, "looking at pictures"))
        found = gathered.usable()
        if problem := masks.problem(settings, (picture.path for picture in found)):
            raise UserError(problem)
        if problem := pictures.imagic_problem(settings, len(found)):
            raise UserError(problem)
        apart, variants = pictures.held_out(found, settings), pictures.examples(gathered, settings, work.size)
        instances = [some for some in variants if some[0].picture not in apart]
        held_out = [some[0] for some in variants if some[0].picture in apart]
        if settings.intervals.validate_mirrored:
            held_out += pictures.mirrored(instances, MOST_MEASURED)
        kept = pictures.kept_examples(instances, settings)
        made = cls(instances, held_out, kept, None)
        if settings.objective.masked:
            made.cut = cache.cut_masks([*made.own, *held_out])
        elif work.project.about.get("inpainting"):
            masks.check_all(picture.path for picture in found)  # one that will not do is named before anything begins
        return made

    @property
    def own(self) -> list[Example]:
        """What is learned."""
        return [example for variants in self.instances for example in variants]

    @property
    def pictures(self) -> Iterator[Picture]:
        """Those that are learned, each once."""
        return (variants[0].picture for variants in self.instances)

    @property
    def largest(self) -> int:
        """The pixels of the largest picture that is learned."""
        return max(example.cut.bucket.area for example in self.own)

    def readings(self, settings: Settings) -> CaptionSchedule:
        """What pictures and those of the class are read with."""
        own, priors = ([one.picture.prompt for one in some] for some in (self.own, self.priors))
        epoch = pictures.seen_each_epoch(self.pictures, settings.concepts)
        return CaptionSchedule(own, priors, settings.captions, settings.general.seed, epoch)

    def latent_bytes(self) -> int:
        """What the latents of pictures that are there take."""
        return forecast.latent_bytes(one.cut.bucket for one in (*self.own, *self.priors, *self.held_out))

    def slots(self, settings: Settings) -> tuple[list[Slot], list[Slot]]:
        """The places in the order of what is learned, and of the class."""
        own = [_slot(variants, settings) for variants in self.instances]
        return own, [Slot(example.picture.concept, example.cut.bucket) for example in self.priors]

    def _masks(self, settings: Settings) -> tuple[int, int, int]:
        """How many masks an inpainting model learns with, of each example that is learned, of the class and held out.
        Those held out are painted as a whole; Imagic has none of the class."""
        return inpainting_masks.of_yours(self.instances, settings), inpainting_masks.OF_CLASS, 0

    def encode(self, work: Work, model: Model, prompts: list[str]) -> EncodedDataset:
        """All as latents, from the disk where they are known already; `prompts` are those of what is learned and of the
        class."""
        store = Store(work.project.latents, model) if work.settings.pictures.cache_on_disk else None
        own, sets = self.own, (self.own, self.priors, self.held_out)
        many = self._masks(work.settings) if model.inpaints else (0, 0, 0)
        rounds = [len(some) * (1 + bool(of_each)) for some, of_each in zip(sets, many)]
        total = sum(rounds)
        area = max(one.cut.bucket.area for some in sets for one in some)
        needed = 4 * sum(weight.numel() for weight in model.vae.parameters()) + footprint.encoding_bytes(area)

        def encode() -> list[Encoded | None]:
            made = list[Encoded | None]()
            for number, some in enumerate(sets):
                words = [one.picture.prompt for one in some] if some is self.held_out else prompts
                before = sum(rounds[:number])
                count = partial(_count, work, before, total)
                made.append(encoded := cache.encode(model, some, words, count, store) if some else None)
                if encoded and model.inpaints:
                    count, seed = partial(_count, work, before + len(some), total), work.settings.general.seed
                    inpainting_latents.add(model, encoded, some, many[number], seed, count, store)
            return made

        made = _with_room(work, model, int(_ROOM * needed), encode)
        if store:
            _tidy(store, work)
        learned, priors, held_out = made
        assert learned is not None
        if self.cut is not None:
            cache.add_masks(learned, self.cut[: len(own)])
            if held_out is not None:
                cache.add_masks(held_out, self.cut[len(own) :])
        return EncodedDataset(learned, priors, held_out)


def _with_room(work: Work, model: Model, needed: int, encode: Encode) -> list[Encoded | None]:
    """What encoding makes: where so many bytes are free, as they may be only while the UNet is aside; or by the CPU,
    where they are not or were not enough after all."""
    if model.device.type == "cpu":
        return encode()
    for way in (contextlib.nullcontext(), offload.away(model.unet)):
        with out_of_memory.caught(), way:
            if hardware.free_bytes(model.device) >= needed:
                return encode()
        hardware.give_back_memory()
    said = "The device has no room for encoding the pictures; the CPU encodes them, which takes longer."
    work.job.warn(Problem(said, "pictures.cache_on_disk", "Where it is on, they are kept for the next run."))
    with model.aside.staying("vae"):
        return encode()


def _count(work: Work, before: int, total: int, done: int) -> None:
    work.stage("encoding pictures", before + done, total)


def _tidy(store: Store, work: Work) -> None:
    store.prune()
    if store.problem:
        said = f"The encoded pictures could not be kept on disk ({store.problem})."
        work.job.warn(Problem(said, "pictures.cache_on_disk", "Make room there, or switch it off."))


def _slot(variants: list[Example], settings: Settings) -> Slot:
    picture, bucket = variants[0].picture, variants[0].cut.bucket
    return Slot(picture.concept, bucket, len(variants), settings.concepts[picture.concept].repeats)
