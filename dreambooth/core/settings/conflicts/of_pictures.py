"""Pictures that are learned from and drawn: their sizes, their words, and those of a class."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreambooth.core.models.families import LATENT_FACTOR, MIN_SIDE, is_image_side

if TYPE_CHECKING:
    from dreambooth.core.settings import Settings


def found(settings: Settings) -> list[str]:
    return [
        *_sizes(settings),
        *_preview_sizes(settings),
        *_tags(settings),
        *_class_pictures(settings),
    ]


def _sizes(settings: Settings) -> list[str]:
    problems = []
    if settings.general.resolution % 64:
        pixels = settings.general.resolution
        problems.append(
            f"general.resolution: {pixels} is not a multiple of 64; set it to {_near(pixels, 64)}, or to 0 for the "
            "model's own."
        )
    step = settings.pictures.bucket_step
    for name in ("bucket_min_side", "bucket_max_side"):
        if (pixels := getattr(settings.pictures, name)) % step:
            problems.append(
                f"pictures.{name}: {pixels} is not a multiple of pictures.bucket_step, {step}; set it to "
                f"{_near(pixels, step)}, or to 0."
            )
    return problems


def _preview_sizes(settings: Settings) -> list[str]:
    problems = []
    for name in ("width", "height"):
        pixels = getattr(settings.previews, name)
        if pixels and not is_image_side(pixels):
            problems.append(
                f"previews.{name}: {pixels} is not a multiple of 8 of at least 64; set it to "
                f"{max(MIN_SIDE, _near(pixels, LATENT_FACTOR))}, or to 0 for the size of training."
            )
    return problems


def _near(pixels: int, step: int) -> int:
    """The nearest multiple that is not 0."""
    return max(1, round(pixels / step)) * step


def _tags(settings: Settings) -> list[str]:
    options, problems = settings.captions, []
    if options.shuffle_tags and options.variants == 1:
        problems.append(
            "captions.shuffle_tags: captions.variants is 1, so that no tag would change its place; set "
            "captions.variants to 8, or turn captions.shuffle_tags off."
        )
    if options.tag_dropout and options.variants == 1:
        problems.append(
            "captions.tag_dropout: captions.variants is 1, so that it would always be the same tags; set "
            "captions.variants to 8, or set captions.tag_dropout to 0."
        )
    marker, tie = options.keep_marker.strip(), options.tie.strip()
    for name, sign, example in (("keep_marker", marker, "|||"), ("tie", tie, ";;;")):
        if "," in sign:
            problems.append(f"captions.{name}: it holds a comma, which parts tags; take another sign, as {example}.")
    if marker and tie and (marker in tie or tie in marker):
        other = "&&&" if ";" in marker else ";;;"
        problems.append(
            f"captions.tie: {tie!r} and captions.keep_marker, {marker!r}, cannot be told apart; take another sign, "
            f"as {other}."
        )
    return problems


def _class_pictures(settings: Settings) -> list[str]:
    problems = []
    for number, concept in enumerate(settings.concepts):
        key = f"concepts.{number}"
        if concept.draws_class_images and not concept.class_prompt.strip():
            problems.append(
                f"{key}.class_prompt: it is empty, but num_class_images_per asks for class pictures; "
                "say what they show or set num_class_images_per to 0."
            )
        if concept.class_mode == "folder" and not concept.class_prompt.strip():
            problems.append(f"{key}.class_prompt: it is empty; say what the pictures of the class folder show.")
        if concept.class_mode == "folder" and not concept.class_data_dir.strip():
            problems.append(f"{key}.class_data_dir: it is empty; class_mode folder needs a folder, or choose fill.")
        if concept.class_mode == "prediction" and not concept.class_prompt.strip():
            problems.append(f"{key}.class_prompt: it is empty; say what is to stay as it is: a photo of a dog.")
        if concept.class_mode == "prediction" and settings.is_full:
            problems.append(
                f"{key}.class_mode: prediction keeps a LoRA to the model under it, which full fine-tuning changes; "
                "choose fill, or set general.method to lora."
            )
    return problems
