"""LoRA files: written in the spelling that every WebUI reads (kohya's), read in all spellings that are about.

Written: a layer's key is `lora_unet_`, `lora_te_` (SDXL: `lora_te1_`, `lora_te2_`) and the layer's diffusers path, in
SDXL's UNet its original one, with `_` for `.`; under it lie `lora_down.weight` (rank, in), `lora_up.weight` (out, rank)
and `alpha`, of a DoRA also `dora_scale` (1, in), of LoHa and LoKr the tensors that LyCORIS names `hada_*` and `lokr_*`;
of OFT `oft_blocks`. Readers scale by alpha / rank, which is exactly how the layer was trained; of OFT it says how far
the layer may turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lycoris_utils import LycorisLayer
from torch import Tensor, nn

from dreambooth.core.errors import UserError
from dreambooth.engine.checkpoints import lora_header, lora_layers, names, peft_config
from dreambooth.engine.checkpoints.lora_header import PREFIXES, UNBOUNDED
from dreambooth.engine.checkpoints.lora_layers import AnyLayer
from dreambooth.engine.checkpoints.source import Files, Source
from dreambooth.engine.layers import dora
from dreambooth.engine.layers.lora_layer import ADAPTER
from dreambooth.engine.layers.oft import OftLayer


def lora_tensors(parts: Mapping[str, nn.Module], family: str, *, half: bool) -> dict[str, Tensor]:
    """{key: tensor} of the LoRA layers that peft has put into the parts."""
    dtype = torch.float16 if half else torch.float32
    tensors: dict[str, Tensor] = {}
    paths = {(part, path): module for part in PREFIXES[family] for path, module in parts[part].named_modules()}
    layers = {
        f"{part}/{names.canonical_key(part, path)}.weight": module
        for (part, path), module in paths.items()
        if _is_adapter(module) or not any(module.children())
    }
    for weight, key in lora_header.keys(layers, family).items():
        if _is_adapter(layer := layers[weight]):
            for name, tensor in _peft_tensors(layer).items():
                kept = torch.float32 if name == "dora_scale" else dtype  # it scales whole columns, and is small
                tensors[f"{key}.{name}"] = tensor.detach().to("cpu", kept).contiguous()
    return tensors


def read(path: Path, weights: Iterable[str], family: str) -> dict[str, AnyLayer]:
    """The layers of a LoRA file by the weight that each changes; `weights` are a model's, by their own names.

    Raises UserError if the file is no LoRA, is damaged, has a layer that this model has no place for, or values that
    are not finite.
    """
    header, files = lora_header.open_file(path), Files()
    layers, configured = {}, peft_config.read(header)
    for weight, outline in lora_header.outlines(header, weights, family).items():
        parts = {what: files.read(tensor) for what, tensor in outline.tensors.items()}
        unbounded = {"alpha"} if outline.kind == "oft" else set[str]()  # as an infinite one says, too
        if not all(torch.isfinite(tensor.float()).all() for what, tensor in parts.items() if what not in unbounded):
            raise UserError(f"{path}: its layer {outline.key} holds values that are not finite; this LoRA is broken.")
        own_rank = lora_layers.rank({what: tensor.shape for what, tensor in parts.items()})
        assumed = 0.0 if outline.kind == "oft" else peft_config.alpha(configured, outline.key, own_rank)
        alpha = parts["alpha"].item() if "alpha" in parts else assumed
        layers[weight] = lora_layers.layer_of(outline.kind, parts, float(alpha))
    return layers


def add(
    path: Path, layers: Mapping[str, AnyLayer], source: Source, parts: Mapping[str, nn.Module], weight: float
) -> None:
    """Adds a file's layers, times `weight`, to the weights of the modules that were filled from `source`.

    They are added to the weights as the source has them and rounded once: what is added to weights that are rounded
    already is mostly lost in bfloat16, where it is small. Raises UserError if a size differs.
    """
    for part, module in parts.items():
        for key, parameter in module.named_parameters():
            name = f"{part}/{names.canonical_key(part, key)}"
            layer = layers.get(name)
            if layer is not None:
                plain = source.copy(name, torch.float32).reshape(parameter.shape)
                change = fitting_change(path, key, layer, plain)
                with torch.no_grad():
                    parameter.copy_(plain.add_(change, alpha=weight).to(parameter.dtype))


def by_module(layers: Mapping[str, AnyLayer], parts: Mapping[str, nn.Module]) -> dict[str, dict[str, AnyLayer]]:
    """The layers by part and path of the module that each changes; a part without any is not there."""
    found: dict[str, dict[str, AnyLayer]] = {}
    for part, module in parts.items():
        for path, _ in module.named_modules():
            layer = layers.get(f"{part}/{names.canonical_key(part, path)}.weight")
            if layer is not None:
                found.setdefault(part, {})[path] = layer
    return found


def fitting_change(path: Path, name: str, layer: AnyLayer, weight: Tensor) -> Tensor:
    """The change of the weight called `name`. Raises UserError if its size differs."""
    try:
        return layer.change(weight)
    except (ValueError, RuntimeError):
        if lora_layers.fits(layer, weight):
            raise
    raise UserError(f"{path}: its layer for {name} has another size than this model's; it belongs to another model.")


def _is_adapter(module: nn.Module) -> bool:
    return isinstance(module, (LoraLayer, LycorisLayer, OftLayer))


def _peft_tensors(layer: Any) -> dict[str, Tensor]:
    """The tensors of one of peft's layers by the names that they have in files."""
    if isinstance(layer, OftLayer):
        return _oft_tensors(layer.blocks())
    if not isinstance(layer, LoraLayer):
        held = {name: getattr(layer, name) for name in layer.adapter_layer_names}
        found = {name: tensors[ADAPTER] for name, tensors in held.items() if ADAPTER in tensors}
        return {**found, "alpha": torch.tensor(float(layer.alpha[ADAPTER]))}
    found = {
        "lora_down.weight": layer.lora_A[ADAPTER].weight,
        "lora_up.weight": layer.lora_B[ADAPTER].weight,
        "alpha": torch.tensor(float(layer.lora_alpha[ADAPTER])),
    }
    if (magnitude := dora.magnitude_of(layer)) is not None:
        sides = layer.get_base_layer().weight.dim() - 2
        found["dora_scale"] = magnitude.weight.reshape(1, -1, *[1] * sides)
    return found


def _oft_tensors(blocks: Tensor) -> dict[str, Tensor]:
    """With a bound that nothing comes near: reForge and SD.Next read no OFT without one. What turns nothing gets 0,
    which is none, as A1111 divides the length of its blocks by itself where there is one, also in half precision."""
    half = blocks.detach().half()
    turns = (half - half.transpose(-1, -2)).any()
    return {"oft_blocks": blocks, "alpha": torch.tensor(UNBOUNDED if turns else 0.0)}
