"""The LoRA file that a run goes on from."""

from __future__ import annotations

from pathlib import Path

from dreambooth.core.errors import UserError
from dreambooth.core.settings import Settings
from dreambooth.engine.checkpoints import lora
from dreambooth.engine.checkpoints.lora_layers import AnyLayer, Layer, Orthogonal
from dreambooth.engine.checkpoints.source import Source


def layers(settings: Settings, source: Source) -> dict[str, AnyLayer]:
    """The layers by the weight that each changes; empty where there is no file.

    Raises UserError for a file that cannot be gone on from with these settings.
    """
    path = settings.lora.start_file.strip()
    if not path or not settings.is_lora:
        return {}
    start = lora.read(Path(path), source.tensors, source.about.family)
    problem = objection(start, settings)
    if problem:
        raise UserError(f"lora.start_file: {path} {problem}")
    return start


def objection(start: dict[str, AnyLayer], settings: Settings) -> str:
    """Why a LoRA's layers cannot be gone on from; empty where they can."""
    return _of_the_file(start) or _with_settings(start, settings)


def _kinds(start: dict[str, AnyLayer]) -> set[tuple[str, bool]]:
    """What the layers are, and whether with a magnitude, as a DoRA's."""
    return {(layer.kind, layer.magnitude is not None) for layer in start.values()}


def _of_the_file(start: dict[str, AnyLayer]) -> str:
    kinds = _kinds(start)
    if any(isinstance(layer, Layer) and layer.mid is not None for layer in start.values()):
        return "is of LyCORIS' CP kind, which cannot be gone on from."
    if len(kinds) > 1:
        return "mixes layers of several kinds, which cannot be gone on from."
    if kinds & {("loha", True), ("lokr", True)}:
        return "puts DoRA on LoHa or LoKr, which cannot be gone on from."
    if any(isinstance(layer, Orthogonal) and layer.alpha for layer in start.values()):
        return "is an OFT that may turn only so far (COFT), which cannot be gone on from."
    return ""


def _with_settings(start: dict[str, AnyLayer], settings: Settings) -> str:
    kinds, on_unet = _kinds(start), {name.startswith("unet/") for name in start}
    if not kinds & {("lora", False), ("lora", True)} and settings.lora.dropout:
        return "is a LoHa, LoKr or OFT, which has no input to drop; set lora.dropout to 0."
    if settings.memory.unet_weights != "whole" and kinds != {("lora", False)}:
        return "is no plain LoRA, and others look at the model's whole weights; set memory.unet_weights to whole."
    if False in on_unet and not settings.tuning.text_encoder_learns:
        return "also teaches the text encoder; set tuning.text_encoder_ratio above 0 to go on."
    if True in on_unet and not settings.tuning.train_unet:
        return "also teaches the UNet; set tuning.train_unet to true to go on."
    return ""
