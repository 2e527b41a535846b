"""What is trained: LoRA layers that peft puts beside the attention and feed-forward layers, or the whole UNet
and text encoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from dreambooth.core.settings import Settings
from dreambooth.engine.families.sd1 import Sd1

# The layers that kohya's LoRA covers: attention, feed-forward and the projections around each transformer.
UNET_LAYERS = (
    r".*\.attentions\.\d+\.(proj_in|proj_out|"
    r"transformer_blocks\.\d+\.(attn[12]\.(to_q|to_k|to_v|to_out\.0)|ff\.net\.(0\.proj|2)))"
)
TEXT_ENCODER_LAYERS = r".*encoder\.layers\.\d+\.(self_attn\.(q_proj|k_proj|v_proj|out_proj)|mlp\.fc[12])"


@dataclass
class Trained:
    """The parameters that training changes, by name; the text encoder's are empty where it is left alone."""

    unet: dict[str, nn.Parameter]
    text_encoder: dict[str, nn.Parameter]

    def named(self) -> dict[str, Tensor]:
        named: dict[str, Tensor] = {f"unet.{name}": p for name, p in self.unet.items()}
        named.update({f"text_encoder.{name}": p for name, p in self.text_encoder.items()})
        return named


def prepare(model: Sd1, settings: Settings) -> Trained:
    """Marks what is trained, after putting LoRA layers in where that is the method."""
    with_text = settings.tuning.text_encoder_ratio > 0
    torch.manual_seed(settings.general.seed)  # the LoRA's first layers start at random
    if settings.is_lora:
        _inject(model.unet, settings, UNET_LAYERS)
        if with_text:
            _inject(model.text_encoder, settings, TEXT_ENCODER_LAYERS)
    else:
        model.unet.requires_grad_(True)
        if with_text:
            model.text_encoder.requires_grad_(True)
    return Trained(_trainable(model.unet), _trainable(model.text_encoder))


def _inject(module: nn.Module, settings: Settings, layers: str) -> None:
    lora = settings.lora
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=layers)
    inject_adapter_in_model(config, module)


def _trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}
