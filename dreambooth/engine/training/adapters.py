"""What is trained: LoRA layers of some kind that peft puts beside the attention and feed-forward layers, and words
that learn vectors of their own; or the whole UNet and text encoders."""

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
WORDS = "words"  # the part that words are that learn
UP = ".lora_B."  # in the names of a LoRA's second matrices
TEXT_ENCODER_LAYERS = r".*encoder\.layers\.\d+\.(self_attn\.(q_proj|k_proj|v_proj|out_proj)|mlp\.fc[12])"


class Layer(Protocol):
    """A layer that somebody has trained."""

    kind: ClassVar[str]  # lora, loha, lokr or oft
    magnitude: Tensor | None  # of a DoRA

    @property
    def alpha(self) -> float: ...
    @property
    def rank(self) -> int: ...


@dataclass
class Trained:
    """The parameters that training changes, by part and name; a part that is left alone is not there."""

    parts: dict[str, dict[str, nn.Parameter]]
    kind: str = "full"  # or the LoRA's: lora, dora, loha, lokr or oft; or embedding

    @property
    def text_encoders(self) -> list[str]:
        """Those whose own layers are trained."""
        return [part for part in self.parts if part not in ("unet", WORDS)]

    def named(self) -> dict[str, Tensor]:
        return {f"{part}.{name}": p for part, parameters in self.parts.items() for name, p in parameters.items()}


def make_trainable(
    model: Model,
    settings: Settings,
    start: Mapping[str, Mapping[str, Layer]] | None = None,
    words: textual_inversion.Vectors | None = None,
) -> Trained:
    """Marks what is trained, after putting LoRA layers in where that is the method; of an embedding alone its words.

    `start` holds layers to go on from, by part and path; the LoRA then has just these layers, each with its own rank.
    `words` are those that it was trained with, or of an embedding; they go on from there.
    """
    kind = _kind(start) if start else settings.lora.kind
    torch.manual_seed(settings.general.seed)  # the LoRA's first layers start at random
    learning: dict[str, nn.Module] = {"unet": model.unet} if settings.trains_unet else {}
    learning |= {part: one for part, one in model.text_encoders.items() if part in settings.text_parts}
    for part, module in learning.items():
        if settings.is_lora and start and part in start:
            _inject_trained(module, settings, kind, start[part])
        elif settings.is_lora:
            layers = _unet_layers(module, settings) if part == "unet" else TEXT_ENCODER_LAYERS
            _inject(module, settings, kind, layers)
        else:
            _unfreeze(module, UNET_LAYERS[settings.tuning.unet_layers] if part == "unet" else "")
            if part != "unet" and settings.tuning.freeze_clip_normalization:
                _freeze_normalization(module)
    for module in learning.values():
        for parameter in module.parameters():
            # A LoRA is made where its layer's weights lie, which may be elsewhere. One in another order in memory, as
            # SDXL's text projection in its file, bitsandbytes would put elsewhere at its first step, unseen by records.
            if parameter.requires_grad:
                parameter.data = parameter.data.to(model.device).contiguous()
    trained = {part: _trainable(module) for part, module in learning.items()}
    if settings.words:
        trained[WORDS] = _learning_words(model, settings, words or {})
    return Trained(trained, kind if settings.is_lora else settings.general.method)


def _learning_words(model: Model, settings: Settings, start: textual_inversion.Vectors) -> dict[str, nn.Parameter]:
    """The vectors of all words that learn, by text encoder."""
    chosen, vectors = settings.embedding, dict[str, Mapping[str, Tensor]]()
    for word in settings.words:
        text = chosen.initial_text.strip() or word
        vectors[word] = start.get(word) or {
            part: textual_inversion.initial(encoder, model.tokenizers[part], text, chosen.vectors)
            for part, encoder in model.text_encoders.items()
        }
    model.learn(vectors)
    trained = {part: textual_inversion.held(encoder) for part, encoder in model.text_encoders.items()}
    for parameter in trained.values():
        parameter.data = parameter.data.to(model.device)
        parameter.requires_grad_(True)
    return trained


def _unfreeze(module: nn.Module, layers: str) -> None:
    for name, parameter in unet_weights.named_weights(module):
        parameter.requires_grad_(re.search(layers, name) is not None)


def _freeze_normalization(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.LayerNorm):
            layer.requires_grad_(False)


def _unet_layers(unet: nn.Module, settings: Settings) -> str:
    """A pattern of the layers that get a LoRA."""
    layers = LORA_LAYERS[settings.lora.layers]
    if not settings.lora.blocks.strip():
        return layers
    blocks = unet_blocks.by_name(path for path, _ in unet.named_modules())
    there = {path: block for path, block in blocks.items() if re.fullmatch(layers, path)}
    chosen = unet_blocks.chosen(settings.lora.blocks, there.values())
    return "|".join(re.escape(path) for path, block in there.items() if block in chosen)


def _kind(start: Mapping[str, Mapping[str, Layer]]) -> str:
    """The kind of the layers to go on from, which all have the same."""
    first = next(layer for layers in start.values() for layer in layers.values())
    return "dora" if first.magnitude is not None else first.kind


def _config(settings: Settings, kind: str, **more: Any) -> PeftConfig:
    chosen = settings.lora
    if kind == "loha":
        return LoHaConfig(r=chosen.rank, alpha=chosen.alpha, **more)
    if kind == "lokr":
        factor = chosen.lokr_factor or -1
        return LoKrConfig(r=chosen.rank, alpha=chosen.alpha, decompose_factor=factor, init_weights="lycoris", **more)
    config = LoraConfig(r=chosen.rank, lora_alpha=chosen.alpha, lora_dropout=chosen.dropout, **more)
    return lora_layer.replace_layers(config)


def _inject(
    module: nn.Module, settings: Settings, kind: str, layers: str, start: Mapping[str, Layer] | None = None
) -> None:
    """Puts adapters on every layer whose path matches; those to go on from each with its own rank and alpha."""
    if kind == "oft":
        oft.inject(module, layers, lambda layer: settings.lora.size(_pixels(layer)))
    else:
        sizes = _sizes(module, settings, layers) if start is None else _sizes_of(start)
        ranks, alphas = ({path: size[n] for path, size in sizes.items()} for n in (0, 1))
        config = _config(settings, kind, target_modules=layers, rank_pattern=ranks, alpha_pattern=alphas)
        _inject_pefts(module, kind, config)
    for parameter in module.parameters():
        if parameter.requires_grad:  # what is trained is held in full precision, whatever the model around it is
            parameter.data = parameter.data.float()


def _sizes(module: nn.Module, settings: Settings, layers: str) -> dict[str, tuple[int, float]]:
    """The rank and the alpha of the layers that have others than most, by a pattern of their paths."""
    found: dict[tuple[int, float], list[str]] = {}
    for path, layer in module.named_modules():
        if re.fullmatch(layers, path) and (size := settings.lora.size(_pixels(layer))) != settings.lora.size(1):
            found.setdefault(size, []).append(re.escape(path))
    return {"|".join(paths): size for size, paths in found.items()}


def _sizes_of(start: Mapping[str, Layer]) -> dict[str, tuple[int, float]]:
    """Those of layers to go on from."""
    return {re.escape(path): (layer.rank or 1, layer.alpha) for path, layer in start.items()}


def _pixels(layer: nn.Module) -> int:
    """How many pixels a layer's kernel has."""
    return math.prod(getattr(layer, "kernel_size", (1,)))


def _inject_pefts(module: nn.Module, kind: str, config: PeftConfig) -> None:
    inject_adapter_in_model(config, module)
    layers = [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]
    for layer in layers:
        lycoris.use(layer)
        if kind == "dora":
            dora.attach(layer)
        if kind == "lokr" and ADAPTER in layer.lokr_w1 and ADAPTER in layer.lokr_w2:
            layer.scaling[ADAPTER] = 1.0  # without a rank there is no alpha over rank: readers take 1


@torch.no_grad()
def _inject_trained(module: nn.Module, settings: Settings, kind: str, start: Mapping[str, Layer]) -> None:
    """Layers to go on from."""
    _inject(module, settings, kind, "|".join(re.escape(path) for path in start), start)
    for path, layer in start.items():
        if kind in ("lora", "dora"):
            _fill_lora(module.get_submodule(path), layer)
        else:
            _fill_lycoris(module.get_submodule(path), layer)


def _fill_lora(target: Any, layer: Any) -> None:
    for side, values in ((target.lora_A, layer.down), (target.lora_B, layer.up)):
        weight = side[ADAPTER].weight
        weight.copy_(values.reshape(weight.shape))
    if layer.magnitude is not None:
        magnitude = dora.magnitudes_of(target)
        magnitude.weight.copy_(layer.magnitude.flatten())


def _fill_lycoris(target: Any, layer: Any) -> None:
    """Takes the file's tensors as they are split there, which is not always as peft would split them."""
    device = target.get_base_layer().weight.device
    for name in target.adapter_layer_names:
        held = getattr(target, name)
        if ADAPTER in held:
            del held[ADAPTER]
        if name in layer.tensors:
            held[ADAPTER] = nn.Parameter(layer.tensors[name].to(device, torch.float32))
    target.r[ADAPTER], target.alpha[ADAPTER], target.scaling[ADAPTER] = layer.rank, layer.alpha, layer.scale


def _trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in unet_weights.named_weights(module) if p.requires_grad}
