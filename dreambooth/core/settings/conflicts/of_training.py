"""What is trained, and on what."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreambooth.core.models import unet_blocks

if TYPE_CHECKING:
    from dreambooth.core.settings import Settings


def found(settings: Settings) -> list[str]:
    return [
        *_what_is_trained(settings),
        *_lora_blocks(settings),
        *_lora_plus(settings),
        *_convolutions(settings),
        *_max_norm(settings),
        *_embedding(settings),
        *_embedding_alone(settings),
        *_imagic(settings),
        *_mirror_images(settings),
    ]


def _what_is_trained(settings: Settings) -> list[str]:
    problems = []
    tuning, objective, lora = settings.tuning, settings.objective, settings.lora
    if not (tuning.train_unet or settings.is_embedding) and tuning.text_encoder_steps:
        problems.append(
            "tuning.text_encoder_steps: without the UNet the text encoder is trained for the whole run; set it to 0."
        )
    if tuning.unet_layers != "all" and not (settings.is_full and tuning.train_unet):
        mend = "lora.layers says which layers a LoRA has" if settings.is_lora else "tuning.train_unet is off"
        mend = "an embedding alone leaves the UNet as it is" if settings.is_embedding else mend
        problems.append(f"tuning.unet_layers: it is {tuning.unet_layers}, but {mend}; set it to all.")
    if not tuning.train_unet and tuning.text_encoder_ratio < 1 and not settings.words_learn:
        problems.append(
            "tuning.train_unet: without the UNet only the text encoder is trained, for the whole run; "
            "set tuning.text_encoder_ratio to 1 or train the UNet."
        )
    if objective.timestep_min > objective.timestep_max:
        problems.append(
            f"objective.timestep_min: {objective.timestep_min} is above objective.timestep_max, "
            f"{objective.timestep_max}, so that no step is left to train; set it to {objective.timestep_max} or less."
        )
    if objective.prior_loss_scale and objective.prior_loss_weight_min > tuning.prior_loss_weight:
        problems.append(
            f"objective.prior_loss_weight_min: {objective.prior_loss_weight_min:g} is above tuning.prior_loss_weight, "
            f"{tuning.prior_loss_weight:g}, which is to fall to it; set it to {tuning.prior_loss_weight:g} or less."
        )
    kind_counts = settings.is_lora and not lora.start_file.strip()  # else the file has its own, and is looked at
    if kind_counts and lora.kind in ("loha", "lokr", "oft") and lora.dropout:
        problems.append(f"lora.dropout: {lora.kind} has no input to drop; set it to 0 or choose lora or dora.")
    for name in ("rank", "conv_rank"):
        if kind_counts and lora.kind == "oft" and getattr(lora, name) == 1:
            problems.append(f"lora.{name}: 1 leaves oft nothing to turn; set it to 2 or more.")
    if settings.memory.attention == "flash" and not tuning.pad_tokens:
        problems.append(
            "tuning.pad_tokens: flash attention cannot leave padding out; turn it on or set memory.attention to sdpa."
        )
    return problems


def _lora_blocks(settings: Settings) -> list[str]:
    key, lora = "lora.blocks", settings.lora
    if not settings.is_lora or not lora.blocks.strip():
        return []
    if reason := unet_blocks.problem(lora.blocks):
        return [f"{key}: {reason}."]
    if not settings.tuning.train_unet:
        return [f"{key}: they are the UNet's, and tuning.train_unet is off; leave it empty."]
    if lora.start_file.strip():
        return [f"{key}: the LoRA of lora.start_file has its own, all of which are gone on from; leave it empty."]
    return []


def _lora_plus(settings: Settings) -> list[str]:
    ratio, lora = settings.learning.lora_plus_ratio, settings.lora
    if not settings.is_lora or ratio == 1:
        return []
    key = f"learning.lora_plus_ratio: it is {ratio:g}"
    if settings.optimizer.name == "prodigy":
        return [f"{key}, but prodigy has one factor for all weights; set it to 1, or choose another optimizer."]
    if lora.kind not in ("lora", "dora") and not lora.start_file.strip():
        return [f"{key}, but {lora.kind} has no second matrix that begins at zero; set it to 1."]
    return []


def _convolutions(settings: Settings) -> list[str]:
    lora = settings.lora
    if not settings.is_lora or lora.layers == "convolutions" or lora.start_file.strip():
        return []
    return [
        f"lora.{name}: it is {value:g}, but lora.layers is {lora.layers}, without convolutions; set it to 0, or "
        "lora.layers to convolutions."
        for name, value in (("conv_rank", lora.conv_rank), ("conv_alpha", lora.conv_alpha))
        if value
    ]


def _max_norm(settings: Settings) -> list[str]:
    lora = settings.lora
    if not (settings.is_lora and lora.max_norm) or lora.kind != "oft" or lora.start_file.strip():
        return []
    return ["lora.max_norm: oft turns what the layers say and adds nothing to them; set it to 0."]


def _embedding(settings: Settings) -> list[str]:
    """A word that learns has a LoRA beside it or is alone, and reading it is all that learns of reading."""
    if not settings.words_learn:
        return []
    problems, tuning = [], settings.tuning
    asked = "general.method embedding" if settings.is_embedding else "embedding.enabled"
    if settings.is_full:
        problems.append(
            "embedding.enabled: full fine-tuning trains every word's with tuning.text_encoder_ratio; turn it off, or "
            "set general.method to lora."
        )
    if not settings.words:
        problems.append(
            f"concepts.0.instance_token: it is empty, and {asked} is to train this word; write the rare word of your "
            "prompt: sks."
        )
    if settings.saving.embedding_in_lora and (dotted := [word for word in settings.words if "." in word]):
        problems.append(
            f"saving.embedding_in_lora: a LoRA's file can hold no word with a dot, as {dotted[0]}; turn it off, or "
            "write the instance token without."
        )
    if not (tuning.train_unet or settings.is_embedding):
        problems.append("tuning.train_unet: a word is trained beside the UNet's LoRA; turn it on.")
    for name in ("text_encoder_ratio", "text_encoder_steps"):
        if getattr(tuning, name):
            problems.append(f"tuning.{name}: with {asked} a word learns in the text encoder's place; set it to 0.")
    return problems


def _embedding_alone(settings: Settings) -> list[str]:
    """All pictures teach a word, and those of the class would teach nothing: no word in their prompts changes."""
    if not settings.is_embedding:
        return []
    problems, why = [], "with general.method embedding only the word changes and the class stays as it is by itself"
    for number, concept in enumerate(settings.concepts):
        key = f"concepts.{number}"
        if settings.words and not concept.instance_token.strip():
            problems.append(f"{key}.instance_token: it is empty, so that its pictures teach no word; write its own.")
        if concept.draws_class_images:
            problems.append(f"{key}.num_class_images_per: {why}; set it to 0.")
        elif concept.class_mode in ("folder", "prediction"):
            problems.append(f"{key}.class_mode: {why}; set it to off.")
    return problems


def _imagic(settings: Settings) -> list[str]:
    """It has one picture, read with one text that nothing else may change."""
    if not settings.imagic.enabled:
        return []
    problems = []
    if len(settings.concepts) > 1:
        problems.append("imagic.enabled: it edits one picture; leave one concept.")
    concept = settings.concepts[0]
    if concept.class_mode in ("folder", "prediction") or (
        concept.class_mode == "fill" and concept.num_class_images_per
    ):
        problems.append("imagic.enabled: it has no pictures of a class; set concepts.0.class_mode to off.")
    if concept.held_out:
        problems.append("concepts.0.held_out: imagic.enabled has only one picture; set it to 0.")
    if settings.is_embedding:
        problems.append(
            "imagic.enabled: it trains the model too, which general.method embedding does not; turn it off."
        )
    elif settings.embedding.enabled:
        problems.append("embedding.enabled: with imagic.enabled the text itself is trained; turn it off.")
    for name in ("text_encoder_ratio", "text_encoder_steps"):
        if getattr(settings.tuning, name):
            problems.append(f"tuning.{name}: with imagic.enabled the text itself is trained; set it to 0.")
    for name in ("shuffle_tags", "tag_dropout", "dropout", "dropout_every"):
        if value := getattr(settings.captions, name):
            mend = "turn it off" if value is True else "set it to 0"
            problems.append(f"captions.{name}: with imagic.enabled the picture is read with one text; {mend}.")
    return problems


def _mirror_images(settings: Settings) -> list[str]:
    """They tell nothing where they are learned."""
    key = "intervals.validate_mirrored"
    if settings.intervals.validate_mirrored and settings.pictures.hflip:
        return [f"{key}: with pictures.hflip mirror images are learned and tell nothing; turn one of them off."]
    if settings.intervals.validate_mirrored and settings.imagic.enabled:
        return [f"{key}: imagic.enabled learns one picture as it is; turn it off."]
    return []
