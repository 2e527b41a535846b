"""What is trained: adapters that are injected into the UNet and the text encoders, learned tokens, or the weights of
the UNet and the text encoders themselves."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from dreambooth.core.models import lora_layers, unet_blocks
from dreambooth.core.settings import Settings
from dreambooth.core.settings.method import UNET_LAYERS
from dreambooth.engine.families import unet_weights
from dreambooth.engine.families.model import Model
from dreambooth.engine.layers import dora, lora_layer, lycoris, oft
from dreambooth.engine.layers.lora_layer import ADAPTER
from dreambooth.engine.prompts import textual_inversion

LORA_LAYERS = {choice: rf".*({layers})" for choice, layers in lora_layers.LORA_LAYERS.items()}  # of whole paths
LEARNED_TOKENS = "words"  # the part that the vectors of textual inversion are
LORA_UP = ".lora_B."  # in the names of a LoRA's second matrices
TEXT_ENCODER_LAYERS = r".*encoder\.layers\.\d+\.(self_attn\.(q_proj|k_proj|v_proj|out_proj)|mlp\.fc[12])"


class Layer(Protocol):
    """An adapter of one layer, as it was read from a file."""

    kind: ClassVar[str]  # lora, loha, lokr or oft
    magnitude: Tensor | None  # of a DoRA

    @property
    def alpha(self) -> float: ...
    @property
    def rank(self) -> int: ...


@dataclass
class Trained:
    """The parameters that training changes, by part and name; without the parts that are frozen."""

    parts: dict[str, dict[str, nn.Parameter]]
    kind: str = "full"  # or of adapters lora, dora, loha, lokr or oft; or embedding

    @property
    def text_encoders(self) -> list[str]:
        """The text encoders whose own layers are trained."""
        return [part for part in self.parts if part not in ("unet", LEARNED_TOKENS)]

    def named(self) -> dict[str, Tensor]:
        """All parameters by part and name, such as unet.conv_in.weight."""
        return {f"{part}.{name}": p for part, parameters in self.parts.items() for name, p in parameters.items()}


def make_trainable(
    model: Model,
    settings: Settings,
    start: Mapping[str, Mapping[str, Layer]] | None = None,
    words: textual_inversion.Vectors | None = None,
) -> Trained:
    """Injects adapters or unfreezes weights, as the method asks for, and adds learned tokens.

    `start` are adapters to continue from, by part and path; then exactly these layers are adapted, each with its own
    rank. `words` are the vectors of learned tokens to continue from. Raises UserError for vectors of another model.
    """
    torch.manual_seed(settings.general.seed)  # for the random initial values of adapters
    modules = _trained_modules(model, settings)
    if settings.is_lora:
        kind = _kind_of(start) if start else settings.lora.kind
        for part, module in modules.items():
            _adapt(part, module, settings, kind, start.get(part) if start else None)
    else:
        kind = settings.general.method
        for part, module in modules.items():
            _unfreeze(part, module, settings)
    for module in modules.values():
        _move_trained(module, model.device)
    parts = {part: _trainable(module) for part, module in modules.items()}
    if settings.words:
        parts[LEARNED_TOKENS] = _add_learned_tokens(model, settings, words or {})
    return Trained(parts, kind)


def _trained_modules(model: Model, settings: Settings) -> dict[str, nn.Module]:
    modules: dict[str, nn.Module] = {"unet": model.unet} if settings.trains_unet else {}
    return modules | {part: encoder for part, encoder in model.text_encoders.items() if part in settings.text_parts}


def _kind_of(start: Mapping[str, Mapping[str, Layer]]) -> str:
    """The kind of the adapters to continue from, which is the same for all."""
    first = next(layer for layers in start.values() for layer in layers.values())
    return "dora" if first.magnitude is not None else first.kind


def _adapt(part: str, module: nn.Module, settings: Settings, kind: str, start: Mapping[str, Layer] | None) -> None:
    if start is None:
        pattern = _unet_layers(module, settings) if part == "unet" else TEXT_ENCODER_LAYERS
        _inject_adapters(module, settings, kind, pattern)
    else:
        _inject_started(module, settings, kind, start)


def _unfreeze(part: str, module: nn.Module, settings: Settings) -> None:
    """Unfreezes the weights of a part that full fine-tuning trains."""
    pattern = UNET_LAYERS[settings.tuning.unet_layers] if part == "unet" else ""
    for name, parameter in unet_weights.named_weights(module):
        parameter.requires_grad_(re.search(pattern, name) is not None)
    if part != "unet" and settings.tuning.freeze_clip_normalization:
        for layer in module.modules():
            if isinstance(layer, nn.LayerNorm):
                layer.requires_grad_(False)


def _move_trained(module: nn.Module, device: torch.device) -> None:
    """Moves the trained parameters to the device, in contiguous memory.

    An adapter is created on its layer's device, which may be another. A transposed weight, such as SDXL's text
    projection in its file, is moved by bitsandbytes at its first step, which a recorded step would not notice.
    """
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(device).contiguous()


def _trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in unet_weights.named_weights(module) if p.requires_grad}


def _add_learned_tokens(model: Model, settings: Settings, start: textual_inversion.Vectors) -> dict[str, nn.Parameter]:
    """Returns the vectors of all learned tokens, by text encoder."""
    chosen, vectors = settings.embedding, dict[str, Mapping[str, Tensor]]()
    for word in settings.words:
        text = chosen.initial_text.strip() or word
        vectors[word] = start.get(word) or {
            part: textual_inversion.initial_vectors(encoder, model.tokenizers[part], text, chosen.vectors)
            for part, encoder in model.text_encoders.items()
        }
    model.set_learned_tokens(vectors)
    trained = {part: textual_inversion.learned_vectors(encoder) for part, encoder in model.text_encoders.items()}
    for parameter in trained.values():
        parameter.data = parameter.data.to(model.device)
        parameter.requires_grad_(True)
    return trained


def _unet_layers(unet: nn.Module, settings: Settings) -> str:
    """A pattern for the paths of the layers that the settings choose."""
    pattern = LORA_LAYERS[settings.lora.layers]
    if not settings.lora.blocks.strip():
        return pattern
    blocks = unet_blocks.by_name(path for path, _ in unet.named_modules())
    matching = {path: block for path, block in blocks.items() if re.fullmatch(pattern, path)}
    chosen = unet_blocks.chosen(settings.lora.blocks, matching.values())
    return "|".join(re.escape(path) for path, block in matching.items() if block in chosen)


def _inject_adapters(
    module: nn.Module, settings: Settings, kind: str, pattern: str, start: Mapping[str, Layer] | None = None
) -> None:
    """Adapts every layer whose path matches; those in `start` with their own rank and alpha."""
    if kind == "oft":
        oft.inject(module, pattern, lambda layer: settings.lora.size(_kernel_pixels(layer)))
    else:
        sizes = _sizes_by_pattern(module, settings, pattern) if start is None else _sizes_by_path(start)
        ranks, alphas = ({path: size[n] for path, size in sizes.items()} for n in (0, 1))
        config = _peft_config(settings, kind, target_modules=pattern, rank_pattern=ranks, alpha_pattern=alphas)
        _inject_peft_layers(module, kind, config)
    for parameter in module.parameters():
        if parameter.requires_grad:  # trained parameters are in float32, whatever the precision of the model
            parameter.data = parameter.data.float()


def _sizes_by_pattern(module: nn.Module, settings: Settings, pattern: str) -> dict[str, tuple[int, float]]:
    """The rank and alpha of the layers that have others than linear layers, by a pattern of their paths."""
    found: dict[tuple[int, float], list[str]] = {}
    for path, layer in module.named_modules():
        if re.fullmatch(pattern, path):
            size = settings.lora.size(_kernel_pixels(layer))
            if size != settings.lora.size(1):
                found.setdefault(size, []).append(re.escape(path))
    return {"|".join(paths): size for size, paths in found.items()}


def _sizes_by_path(start: Mapping[str, Layer]) -> dict[str, tuple[int, float]]:
    """The rank and alpha of each adapter to continue from, by a pattern of its path."""
    return {re.escape(path): (layer.rank or 1, layer.alpha) for path, layer in start.items()}


def _kernel_pixels(layer: nn.Module) -> int:
    return math.prod(getattr(layer, "kernel_size", (1,)))


def _peft_config(settings: Settings, kind: str, **more: Any) -> PeftConfig:
    chosen = settings.lora
    if kind == "loha":
        return LoHaConfig(r=chosen.rank, alpha=chosen.alpha, **more)
    if kind == "lokr":
        factor = chosen.lokr_factor or -1
        return LoKrConfig(r=chosen.rank, alpha=chosen.alpha, decompose_factor=factor, init_weights="lycoris", **more)
    config = LoraConfig(r=chosen.rank, lora_alpha=chosen.alpha, lora_dropout=chosen.dropout, **more)
    return lora_layer.replace_layers(config)


def _inject_peft_layers(module: nn.Module, kind: str, config: PeftConfig) -> None:
    inject_adapter_in_model(config, module)
    layers = [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]
    for layer in layers:
        lycoris.replace_class(layer)
        if kind == "dora":
            dora.attach(layer)
        if kind == "lokr" and ADAPTER in layer.lokr_w1 and ADAPTER in layer.lokr_w2:
            layer.scaling[ADAPTER] = 1.0  # without a rank there is no alpha / rank: readers take 1


@torch.no_grad()
def _inject_started(module: nn.Module, settings: Settings, kind: str, start: Mapping[str, Layer]) -> None:
    """Adapts the layers in `start` and gives them its values."""
    _inject_adapters(module, settings, kind, "|".join(re.escape(path) for path in start), start)
    fill = _fill_lora if kind in ("lora", "dora") else _fill_factors
    for path, layer in start.items():
        fill(module.get_submodule(path), layer)


def _fill_lora(target: Any, layer: Any) -> None:
    for side, values in ((target.lora_A, layer.down), (target.lora_B, layer.up)):
        weight = side[ADAPTER].weight
        weight.copy_(values.reshape(weight.shape))
    if layer.magnitude is not None:
        magnitude = dora.magnitude_of(target)
        magnitude.weight.copy_(layer.magnitude.flatten())


def _fill_factors(target: Any, layer: Any) -> None:
    """Replaces the factors of a LoHa, LoKr or OFT layer, as a file may split them otherwise than peft would."""
    device = target.get_base_layer().weight.device
    for name in target.adapter_layer_names:
        factors = getattr(target, name)
        if ADAPTER in factors:
            del factors[ADAPTER]
        if name in layer.tensors:
            factors[ADAPTER] = nn.Parameter(layer.tensors[name].to(device, torch.float32))
    target.r[ADAPTER], target.alpha[ADAPTER], target.scaling[ADAPTER] = layer.rank, layer.alpha, layer.scale
