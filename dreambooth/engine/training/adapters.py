"""What is trained: LoRA layers that peft puts beside the attention and feed-forward layers, or the whole UNet
and text encoders."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from dreambooth.core.settings import Settings
from dreambooth.engine.families.model import Model

_ATTENTION = r"transformer_blocks\.\d+\.attn[12]\.(to_q|to_k|to_v|to_out\.0)"
# What kohya's LoRA covers: attention, feed-forward and the projections around each transformer.
_TRANSFORMER = rf"{_ATTENTION}|transformer_blocks\.\d+\.ff\.net\.(0\.proj|2)|proj_in|proj_out"
# And what LoCon adds: everything else inside the residual blocks and between them.
_CONVOLUTIONS = r"resnets\.\d+\.(conv1|conv2|conv_shortcut|time_emb_proj)|(down|up)samplers\.0\.conv"
UNET_LAYERS = {
    "attention": rf".*\.attentions\.\d+\.({_ATTENTION})",
    "transformer": rf".*\.attentions\.\d+\.({_TRANSFORMER})",
    "convolutions": rf".*\.(attentions\.\d+\.({_TRANSFORMER})|{_CONVOLUTIONS})",
}
TEXT_ENCODER_LAYERS = r".*encoder\.layers\.\d+\.(self_attn\.(q_proj|k_proj|v_proj|out_proj)|mlp\.fc[12])"


class Layer(Protocol):
    """A LoRA layer that somebody has trained: what it adds is alpha / rank * up @ down."""

    down: Tensor  # (rank, in, ...)
    up: Tensor  # (out, rank, ...)
    alpha: float

    @property
    def rank(self) -> int: ...


@dataclass
class Trained:
    """The parameters that training changes, by part and name; a part that is left alone is not there."""

    parts: dict[str, dict[str, nn.Parameter]]

    @property
    def text_encoders(self) -> list[str]:
        return [part for part in self.parts if part != "unet"]

    def named(self) -> dict[str, Tensor]:
        return {f"{part}.{name}": p for part, parameters in self.parts.items() for name, p in parameters.items()}


def prepare(model: Model, settings: Settings, start: Mapping[str, Mapping[str, Layer]] | None = None) -> Trained:
    """Marks what is trained, after putting LoRA layers in where that is the method.

    `start` holds layers to go on from, by part and path; the LoRA then has just these layers, each with its own rank.
    """
    with_text = settings.tuning.text_encoder_ratio > 0
    torch.manual_seed(settings.general.seed)  # the LoRA's first layers start at random
    learning: dict[str, nn.Module] = {"unet": model.unet, **(model.text_encoders if with_text else {})}
    for part, module in learning.items():
        if settings.is_lora and start and part in start:
            _inject_trained(module, settings, start[part])
        elif settings.is_lora:
            layers = UNET_LAYERS[settings.lora.layers] if part == "unet" else TEXT_ENCODER_LAYERS
            _inject(module, LoraConfig(**_shape(settings), target_modules=layers))
        else:
            module.requires_grad_(True)
    return Trained({part: _trainable(module) for part, module in learning.items()})


def _shape(settings: Settings) -> dict[str, float]:
    return {"r": settings.lora.rank, "lora_alpha": settings.lora.alpha, "lora_dropout": settings.lora.dropout}


def _inject(module: nn.Module, config: LoraConfig) -> None:
    inject_adapter_in_model(config, module)
    for parameter in module.parameters():
        if parameter.requires_grad:  # what is trained is held in full precision, whatever the model around it is
            parameter.data = parameter.data.float()


@torch.no_grad()
def _inject_trained(module: nn.Module, settings: Settings, start: Mapping[str, Layer]) -> None:
    exact = {re.escape(path): layer for path, layer in start.items()}
    config = LoraConfig(
        **_shape(settings),
        target_modules=list(start),
        rank_pattern={path: layer.rank for path, layer in exact.items()},
        alpha_pattern={path: layer.alpha for path, layer in exact.items()},
    )
    _inject(module, config)
    for path, layer in start.items():
        target = module.get_submodule(path)
        for side, values in ((target.lora_A, layer.down), (target.lora_B, layer.up)):
            weight = side["default"].weight
            weight.copy_(values.reshape(weight.shape))


def _trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}
