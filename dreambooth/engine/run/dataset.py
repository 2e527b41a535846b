"""The images of a run: those it trains on, class images, and validation images, which are held out."""

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

_FRAGMENTATION = 1.05  # times what encoding is known to take


@dataclass
class EncodedDataset:
    """All images of a run as cached latents; None where there are none of a kind."""

    own: Encoded
    priors: Encoded | None
    held_out: Encoded | None


@dataclass
class Dataset:
    """All images of a run, with their captions and crops, before they are encoded."""

    instances: list[list[Example]]  # of each image that is trained on its variants, such as its mirror image
    held_out: list[Example]  # for validation
    kept: list[Example]  # training images as class images, for prior preservation by the base model's prediction
    masks: list[Tensor | None] | None  # of the training images, then of those held out, where the loss is masked
    priors: list[Example] = field(default_factory=list)  # class images

    @classmethod
    def gather(cls, work: Work) -> Dataset:
        """Everything but the class images that are drawn. Raises UserError for images that cannot be used."""
        settings = work.settings
        gathered = pictures.gather(settings.concepts, partial(work.stage, "looking at pictures"))
        usable = gathered.usable()
        if problem := masks.problem(settings, (picture.path for picture in usable)):
            raise UserError(problem)
        if problem := pictures.imagic_problem(settings, len(usable)):
            raise UserError(problem)
        held_out_pictures, variants = (
            pictures.held_out(usable, settings),
            pictures.examples(gathered, settings, work.size),
        )
        instances = [examples for examples in variants if examples[0].picture not in held_out_pictures]
        held_out = [examples[0] for examples in variants if examples[0].picture in held_out_pictures]
        if settings.intervals.validate_mirrored:
            held_out += pictures.mirrored(instances, MOST_MEASURED)
        kept = pictures.kept_examples(instances, settings)
        dataset = cls(instances, held_out, kept, None)
        if settings.objective.masked:
            dataset.masks = cache.cut_masks([*dataset.own, *held_out])
        elif work.project.about.get("inpainting"):
            masks.check_all(picture.path for picture in usable)  # a faulty one is named before anything begins
        return dataset

    @property
    def own(self) -> list[Example]:
        """All variants of the training images."""
        return [example for variants in self.instances for example in variants]

    @property
    def pictures(self) -> Iterator[Picture]:
        """The training images, each once."""
        return (variants[0].picture for variants in self.instances)

    @property
    def largest_area(self) -> int:
        """The pixels of the largest training image."""
        return max(example.cut.bucket.area for example in self.own)

    def caption_schedule(self, settings: Settings) -> CaptionSchedule:
        """Which captions training images and class images are trained with."""
        own, priors = ([example.picture.prompt for example in examples] for examples in (self.own, self.priors))
        epoch = pictures.seen_each_epoch(self.pictures, settings.concepts)
        return CaptionSchedule(own, priors, settings.captions, settings.general.seed, epoch)

    def latent_bytes(self) -> int:
        """How much memory the cached latents of all images take."""
        return forecast.latent_bytes(example.cut.bucket for example in (*self.own, *self.priors, *self.held_out))

    def slots(self, settings: Settings) -> tuple[list[Slot], list[Slot]]:
        """What the batch order chooses among: training images, and class images."""
        own = [_slot(variants, settings) for variants in self.instances]
        return own, [Slot(example.picture.concept, example.cut.bucket) for example in self.priors]

    def _inpainting_masks(self, settings: Settings) -> tuple[int, int, int]:
        """How many masks an inpainting model has of each training image, class image and image held out.

        An image held out is masked as a whole; Imagic has no class images.
        """
        return inpainting_masks.of_yours(self.instances, settings), inpainting_masks.OF_CLASS, 0

    def encode(self, work: Work, model: Model, captions: list[str]) -> EncodedDataset:
        """All images as latents, read from the disk where they are cached. `captions` are the distinct ones of training
        images and class images, which latents name by their number."""
        store = Store(work.project.latents, model) if work.settings.pictures.cache_on_disk else None
        kinds = (self.own, self.priors, self.held_out)
        masks_each = self._inpainting_masks(work.settings) if model.inpaints else (0, 0, 0)
        rounds = [len(examples) * (1 + bool(number)) for examples, number in zip(kinds, masks_each)]
        total = sum(rounds)
        area = max(example.cut.bucket.area for examples in kinds for example in examples)
        needed = 4 * sum(weight.numel() for weight in model.vae.parameters()) + footprint.encoding_bytes(area)

        def encode() -> list[Encoded | None]:
            latents = list[Encoded | None]()
            for number, examples in enumerate(kinds):
                own_captions = [example.picture.prompt for example in examples]
                known = own_captions if examples is self.held_out else captions
                before = sum(rounds[:number])
                count = partial(_count, work, before, total)
                latents.append(encoded := cache.encode(model, examples, known, count, store) if examples else None)
                if encoded and model.inpaints:
                    count, seed = partial(_count, work, before + len(examples), total), work.settings.general.seed
                    inpainting_latents.add(model, encoded, examples, masks_each[number], seed, count, store)
            return latents

        own, priors, held_out = _encode_with_room(work, model, int(_FRAGMENTATION * needed), encode)
        if store:
            _prune(store, work)
        assert own is not None
        if self.masks is not None:
            cache.add_masks(own, self.masks[: len(self.own)])
            if held_out is not None:
                cache.add_masks(held_out, self.masks[len(self.own) :])
        return EncodedDataset(own, priors, held_out)


def _encode_with_room(work: Work, model: Model, needed: int, encode: Encode) -> list[Encoded | None]:
    """What `encode` returns, which needs so many bytes of the device: with the UNet on it, else with the UNet moved
    away, else on the CPU."""
    if model.device.type == "cpu":
        return encode()
    for way in (contextlib.nullcontext(), offload.moved_to_cpu(model.unet)):
        with out_of_memory.caught(), way:
            if hardware.free_bytes(model.device) >= needed:
                return encode()
        hardware.give_back_memory()
    message = "The device has no room for encoding the pictures; the CPU encodes them, which takes longer."
    work.job.warn(Problem(message, "pictures.cache_on_disk", "Where it is on, they are kept for the next run."))
    with model.offloader.computing_in_place("vae"):
        return encode()


def _count(work: Work, before: int, total: int, done: int) -> None:
    work.stage("encoding pictures", before + done, total)


def _prune(store: Store, work: Work) -> None:
    store.prune()
    if store.problem:
        message = f"The encoded pictures could not be kept on disk ({store.problem})."
        work.job.warn(Problem(message, "pictures.cache_on_disk", "Make room there, or switch it off."))


def _slot(variants: list[Example], settings: Settings) -> Slot:
    picture, bucket = variants[0].picture, variants[0].cut.bucket
    return Slot(picture.concept, bucket, len(variants), settings.concepts[picture.concept].repeats)
