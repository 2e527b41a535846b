"""What settings come to that is allowed and seldom meant: said beside a run's plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from dreambooth.core import captions, emphasis
from dreambooth.core.memory.footprint_table import full_size
from dreambooth.core.models.anatomy import Anatomy
from dreambooth.core.settings import Settings

_IMAGIC_STEPS, _IMAGIC_FEW = 1000, 300  # of a full-size model: what is usual, and what is worth a word
_FULL_SIZE = 0.5  # of SD 1's UNet


def found(
    settings: Settings,
    texts: Sequence[str],
    steps: int,
    model: Anatomy | None,
    pictures: Mapping[int, Sequence[Path]] = {},
) -> list[str]:
    """A sentence for each. `texts` are what pictures are read with, `steps` those of the run; `model` is None where its
    file is gone. `pictures` are those of each concept, by its number."""
    return [
        *_without_words(settings, pictures),
        *_unread_captions(settings, pictures),
        *_one_text(settings, texts),
        *_unread_weights(settings, texts),
        *_no_class_pictures(settings),
        *_short_imagic(settings, steps, model),
    ]


def _without_words(settings: Settings, pictures: Mapping[int, Sequence[Path]]) -> list[str]:
    remarks = []
    for number, all_of_it in pictures.items():
        bare = [path for path in all_of_it if captions.says_nothing(settings.concepts[number], path)]
        if bare:
            remarks.append(
                f"concepts.{number}.instance_prompt: {captions.FILEWORDS} stands for nothing at {len(bare)} of "
                f"{len(all_of_it)} pictures, such as {bare[0].name}, whose name a camera or a program chose; write a "
                "caption for each, or into the prompt what they show."
            )
    return remarks


def _unread_captions(settings: Settings, pictures: Mapping[int, Sequence[Path]]) -> list[str]:
    """Elsewhere a caption file takes the place of the prompt, wherever there is one."""
    remarks = []
    for number, all_of_it in pictures.items():
        prompt = settings.concepts[number].instance_prompt
        if settings.imagic.enabled or captions.FILEWORDS in prompt:
            continue
        if count := sum(captions.beside(path) is not None for path in all_of_it):
            remarks.append(
                f"concepts.{number}.instance_prompt: it has no {captions.FILEWORDS}, so that the caption files of "
                f"{count} of {len(all_of_it)} pictures are not read; write {captions.FILEWORDS} for them into it."
            )
    return remarks


def _one_text(settings: Settings, texts: Iterable[str]) -> list[str]:
    if settings.captions.variants > 1 or not any(map(captions.means_several, texts)):
        return []
    return [
        "captions.variants: it is 1, so that of {a|b} and of captions with several lines one and the same is always "
        "read; set it to 2 or more."
    ]


def _unread_weights(settings: Settings, texts: Iterable[str]) -> list[str]:
    prompts = [*texts, settings.previews.prompts]
    if settings.captions.weighted or not any(map(emphasis.has_weights, prompts)):
        return []
    return [
        "captions.weighted: it is off, so that what stands as (word:1.2) is read with its brackets and its number; "
        "turn it on to weigh words as the WebUI does."
    ]


def _no_class_pictures(settings: Settings) -> list[str]:
    if settings.is_embedding or settings.imagic.enabled:
        return []
    return [
        f"concepts.{number}.num_class_images_per: it is 0, so that the class prompt is drawn in previews at most and "
        "keeps nothing of the class; set it to 5 or so if the class is to stay as it is."
        for number, concept in enumerate(settings.concepts)
        if concept.class_mode == "fill" and concept.class_prompt.strip() and not concept.num_class_images_per
    ]


def _short_imagic(settings: Settings, steps: int, model: Anatomy | None) -> list[str]:
    if not settings.imagic.enabled or steps >= _IMAGIC_FEW or model is None:
        return []
    if model.unet < _FULL_SIZE * full_size("sd1").unet:
        return []
    return [
        f"intervals.max_train_steps: {steps} steps are few for imagic.enabled, which takes a thousand of a full-size "
        f"model; set it to {_IMAGIC_STEPS}."
    ]
