"""Whether a run can go on from a LoRA file: known from its header, before anything is loaded. Light, for a plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from dreambooth.core import learned_words
from dreambooth.core.errors import UserError
from dreambooth.core.models import embedding_file
from dreambooth.core.models.model_file import Header
from dreambooth.core.settings import Settings
from dreambooth.engine.checkpoints import lora_header, names
from dreambooth.engine.checkpoints.lora_header import Outline


def check(settings: Settings, weights: Iterable[str], family: str) -> Path | None:
    """The file that is gone on from; None where there is none. `weights` are the model's, by their own names.

    Raises UserError for a file that cannot be gone on from with these settings.
    """
    named = settings.lora.start_file.strip()
    if not named or not settings.is_lora:
        return None
    path = Path(named).expanduser()
    header = lora_header.open_file(path)
    if reason := objection(lora_header.outlines(header, weights, family), settings) or _words(header, settings):
        raise UserError(f"lora.start_file: {path} {reason}")
    return path


def weights_of(header: Header) -> list[str]:
    """A model's weights by their own names."""
    return list(map(names.own_name, header.tensors) if header.configs else names.from_original(header.tensors))


def objection(start: Mapping[str, Outline], settings: Settings) -> str:
    """Why a LoRA's layers, by the weight that each changes, cannot be gone on from; empty where they can."""
    return _of_the_file(start) or _with_settings(start, settings)


def _kinds(start: Mapping[str, Outline]) -> set[tuple[str, bool]]:
    return {(layer.kind, layer.is_dora) for layer in start.values()}


def _of_the_file(start: Mapping[str, Outline]) -> str:
    kinds = _kinds(start)
    if any("mid" in layer.tensors for layer in start.values()):
        return "is of LyCORIS' CP kind, which cannot be gone on from."
    if len(kinds) > 1:
        return "mixes layers of several kinds, which cannot be gone on from."
    if kinds & {("loha", True), ("lokr", True)}:
        return "puts DoRA on LoHa or LoKr, which cannot be gone on from."
    if any(layer.is_bounded for layer in start.values()):
        return "is an OFT that may turn only so far (COFT), which cannot be gone on from."
    return ""


def _with_settings(start: Mapping[str, Outline], settings: Settings) -> str:
    kinds, parts = _kinds(start), {name.partition("/")[0] for name in start}
    if not kinds & {("lora", False), ("lora", True)} and settings.lora.dropout:
        return "is a LoHa, LoKr or OFT, which has no input to drop; set lora.dropout to 0."
    if not kinds & {("lora", False), ("lora", True)} and settings.learning.lora_plus_ratio != 1:
        return "is a LoHa, LoKr or OFT, for which there is no LoRA+; set learning.lora_plus_ratio to 1."
    if ("oft", False) in kinds and settings.lora.max_norm:
        return "is an OFT, which adds nothing to the weights; set lora.max_norm to 0."
    if settings.memory.unet_weights != "whole" and kinds != {("lora", False)}:
        return "is no plain LoRA, and others look at the model's whole weights; set memory.unet_weights to whole."
    if parts - {"unet"} and not settings.tuning.text_encoder_learns:
        return "also teaches the text encoder; set tuning.text_encoder_ratio above 0 to go on."
    if untrained := sorted(parts - {"unet", *settings.text_parts}):
        which = "second" if "text_encoder_2" in untrained else "first"
        return f"also teaches the {which} text encoder; set tuning.text_encoders to both to go on."
    if "unet" in parts and not settings.tuning.train_unet:
        return "also teaches the UNet; set tuning.train_unet to true to go on."
    return ""


def _words(header: Header, settings: Settings) -> str:
    if not (learned_words.of(header.metadata) or embedding_file.bundled(header.tensors)):
        return ""
    if settings.embedding.enabled:
        both = "was trained with an embedding, which is gone on from too; leave embedding.start_file empty."
        return both if settings.embedding.start_file.strip() else ""
    return "was trained with an embedding, and is another one without it; turn embedding.enabled on to go on."
