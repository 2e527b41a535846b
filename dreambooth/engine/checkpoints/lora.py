"""LoRA files: written in the spelling that every WebUI reads (kohya's), read in all spellings that are about.

Written: a layer's key is `lora_unet_`, `lora_te_` (SDXL: `lora_te1_`, `lora_te2_`) and the layer's diffusers path with
`_` for `.`; under it lie `lora_down.weight` (rank, in), `lora_up.weight` (out, rank) and `alpha`, of a DoRA also
`dora_scale` (1, in), of LoHa and LoKr the tensors that LyCORIS names `hada_*` and `lokr_*`; of OFT `oft_blocks` alone.
Readers scale by alpha / rank, which is exactly how the layer was trained.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lycoris_utils import LycorisLayer
from torch import Tensor, nn

from dreambooth.core.errors import UserError
from dreambooth.core.models import checkpoint
from dreambooth.core.models.model_file import Header
from dreambooth.engine.checkpoints import lora_layers, names
from dreambooth.engine.checkpoints.lora_layers import LOHA, LOKR, OFT, AnyLayer
from dreambooth.engine.checkpoints.source import Files
from dreambooth.engine.layers import dora
from dreambooth.engine.layers.lora_layer import ADAPTER
from dreambooth.engine.layers.oft import OftLayer

_PREFIXES = {
    "sd1": {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"},
    "sd2": {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"},
    "sdxl": {
        "unet": "lora_unet_",
        "text_encoder": "lora_te1_text_model_",
        "text_encoder_2": "lora_te2_text_model_",
    },
}
# (in the file, what it is): kohya's, diffusers' and peft's endings, the last with or without the adapter's name.
_ENDINGS = (
    (r"\.lora_down\.weight", "down"),
    (r"\.lora_up\.weight", "up"),
    (r"\.lora_mid\.weight", "mid"),
    (r"\.alpha", "alpha"),
    (r"\.lora\.down\.weight", "down"),
    (r"\.lora\.up\.weight", "up"),
    (r"_lora\.down\.weight", "down"),
    (r"_lora\.up\.weight", "up"),
    (r"\.lora_A(\.\w+)?\.weight", "down"),
    (r"\.lora_B(\.\w+)?\.weight", "up"),
    *((rf"\.{name}", name) for name in (*LOHA, *LOKR, *OFT, "dora_scale")),
)
_OTHER_KINDS = re.compile(r"\.(oft_diag|oft_R|rescale|boft|ia3|diff|lora_magnitude|on_input)")


def lora_tensors(parts: Mapping[str, nn.Module], family: str, *, half: bool) -> dict[str, Tensor]:
    """{key: tensor} of the LoRA layers that peft has put into the parts."""
    dtype = torch.float16 if half else torch.float32
    tensors: dict[str, Tensor] = {}
    for part, prefix in _PREFIXES[family].items():
        for path, layer in parts[part].named_modules():
            if isinstance(layer, (LoraLayer, LycorisLayer, OftLayer)):
                key = prefix + names.canonical_key(part, path).replace(".", "_")
                for name, tensor in _peft_tensors(layer).items():
                    kept = torch.float32 if name == "dora_scale" else dtype  # it scales whole columns, and is small
                    tensors[f"{key}.{name}"] = tensor.detach().to("cpu", kept).contiguous()
    return tensors


def read(path: Path, weights: Iterable[str], family: str) -> dict[str, AnyLayer]:
    """The layers of a LoRA file by the weight that each changes; `weights` are a model's, by their own names.

    Raises UserError if the file is no LoRA, is damaged, or has a layer that this model has no place for.
    """
    header = checkpoint.read_header(path)
    if other := next((name for name in header.tensors if _OTHER_KINDS.search(name)), None):
        raise UserError(f"{path}: this LyCORIS file ({other}) cannot be read; only LoRA, DoRA, LoHa, LoKr and OFT can.")
    if checkpoint.describe(header).kind != "lora":
        raise UserError(f"{path}: this is not a LoRA file.")
    places, files = _spellings(weights, family), Files()
    layers, (collected, unknown) = {}, _collected(header)
    if unknown:
        raise UserError(
            f"{path}: its tensor {unknown[0]} is of a kind that is not known here, and without it the file would do "
            "something else than it was made for; take another file."
        )
    for key, found in collected.items():
        if key not in places:
            raise UserError(f"{path}: its layer {key} has no place in this model; it belongs to another kind.")
        parts = {what: files.read(header.tensors[name]) for what, name in found.items()}
        own_rank = lora_layers.rank({what: tensor.shape for what, tensor in parts.items()})
        assumed = 0.0 if "oft_blocks" in parts else _alpha_beside(header, key, own_rank)
        alpha = parts["alpha"].item() if "alpha" in parts else assumed
        layer = lora_layers.of(parts, float(alpha))
        if layer is None:
            raise UserError(f"{path}: its layer {key} is incomplete; the file is damaged.")
        if layer.magnitude is not None and (layer.magnitude.dim() < 2 or layer.magnitude.shape[0] != 1):
            raise UserError(
                f"{path}: its layer {key} is a DoRA whose lengths are those of outputs, which WebUIs read in unlike "
                "ways; only those of inputs can be read."
            )
        layers[places[key]] = layer
    return layers


def add(path: Path, layers: Mapping[str, AnyLayer], parts: Mapping[str, nn.Module], weight: float) -> None:
    """Adds a file's layers to the modules' weights, times `weight`. Raises UserError if a size differs."""
    for part, module in parts.items():
        for key, parameter in module.named_parameters():
            layer = layers.get(f"{part}/{names.canonical_key(part, key)}")
            if layer is not None:
                with torch.no_grad():
                    parameter += fitting_change(path, key, layer, parameter).to(parameter) * weight


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
        raise UserError(
            f"{path}: its layer for {name} has another size than this model's; it belongs to another model."
        ) from None


def _peft_tensors(layer: Any) -> dict[str, Tensor]:
    """The tensors of one of peft's layers by the names that they have in files."""
    if isinstance(layer, OftLayer):  # readers take alpha for the most that it may turn
        return {"oft_blocks": layer.blocks()}
    if not isinstance(layer, LoraLayer):
        held = {name: getattr(layer, name) for name in layer.adapter_layer_names}
        found = {name: tensors[ADAPTER] for name, tensors in held.items() if ADAPTER in tensors}
        return {**found, "alpha": torch.tensor(float(layer.alpha[ADAPTER]))}
    found = {
        "lora_down.weight": layer.lora_A[ADAPTER].weight,
        "lora_up.weight": layer.lora_B[ADAPTER].weight,
        "alpha": torch.tensor(float(layer.lora_alpha[ADAPTER])),
    }
    if (magnitude := dora.of(layer)) is not None:
        sides = layer.get_base_layer().weight.dim() - 2
        found["dora_scale"] = magnitude.weight.reshape(1, -1, *[1] * sides)
    return found


def _collected(header: Header) -> tuple[dict[str, dict[str, str]], list[str]]:
    """{layer as the file spells it: {down, up, alpha, mid, or LyCORIS' name of it: tensor's name}}, and the tensors
    whose ending is none of these."""
    layers: dict[str, dict[str, str]] = {}
    unknown: list[str] = []
    for name in header.tensors:
        for ending, what in _ENDINGS:
            if match := re.fullmatch(rf"(.+?){ending}", name):
                key = re.sub(r"\.processor\.(to_[qkv]|to_out)$", r".\1", match[1])
                layers.setdefault(re.sub(r"\.to_out$", ".to_out.0", key), {})[what] = name
                break
        else:
            unknown.append(name)
    return layers, unknown


def _spellings(weights: Iterable[str], family: str) -> dict[str, str]:
    """{a layer's key in any spelling: the weight's own name}."""
    places: dict[str, str] = {}
    own = [name for name in weights if name.endswith(".weight") and not name.startswith("vae/")]
    originals = names.to_original(own, family)
    for name in own:
        part, _, key = name.removesuffix(".weight").partition("/")
        for spelled in _spelled(part, key, _PREFIXES[family][part], family):
            places.setdefault(spelled, name)
        if part == "unet":  # kohya's SDXL scripts name the UNet's layers as the original file does
            places[originals[name].name.removesuffix(".weight").replace("model.diffusion_model.", "lora_unet_", 1)
                   .replace(".", "_")] = name  # fmt: skip
    return places


def _spelled(part: str, key: str, prefix: str, family: str) -> Iterator[str]:
    yield prefix + key.replace(".", "_")
    yield f"{part}.{key}"
    if part == "unet":
        yield key
        yield f"base_model.model.{key}"
        return
    yield f"{part}.text_model.{key}"
    if family != "sdxl":
        yield prefix.replace("lora_te_", "lora_te1_") + key.replace(".", "_")
        yield f"base_model.model.text_model.{key}"


def _alpha_beside(header: Header, key: str, rank: int) -> float:
    """Alpha of a file that does not hold it: in its metadata, in peft's configuration beside it, or the rank."""
    try:
        said: dict[str, Any] = json.loads(header.metadata.get("lora_adapter_metadata", "{}"))
        part = key.split(".")[0]
        beside = header.path.with_name("adapter_config.json")
        if not said and header.path.stem == "adapter_model" and beside.exists():
            said, part = {"x.lora_alpha": json.loads(beside.read_text(encoding="utf-8"))["lora_alpha"]}, "x"
        return float(said.get(f"{part}.lora_alpha", rank))
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        return float(rank)
