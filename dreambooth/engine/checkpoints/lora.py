"""LoRA files: written in the spelling that every WebUI reads (kohya's), read in all spellings that are about.

Written: a layer's key is `lora_unet_`, `lora_te_` (SDXL: `lora_te1_`, `lora_te2_`) and the layer's diffusers path with
`_` for `.`; under it lie `lora_down.weight` (rank, in), `lora_up.weight` (out, rank) and `alpha`.
Readers scale by alpha / rank, which is exactly how the layer was trained.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from dreambooth.core import checkpoint
from dreambooth.core.errors import UserError
from dreambooth.core.model_file import Header
from dreambooth.engine.checkpoints import names
from dreambooth.engine.checkpoints.source import Files

ADAPTER = "default"
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
)
_OTHER_KINDS = re.compile(r"\.(hada|lokr|oft|boft|ia3|diff|dora|lora_magnitude|on_input)")


@dataclass(frozen=True)
class Layer:
    """What a LoRA adds to one weight: alpha / rank * up @ down, with `mid` between them in some convolutions."""

    down: Tensor  # (rank, in, ...)
    up: Tensor  # (out, rank, ...)
    alpha: float
    mid: Tensor | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def change(self, shape: Iterable[int]) -> Tensor:
        """The change of a weight of this shape, float32. Raises ValueError if it does not fit."""
        down, up = self.down.float(), self.up.float().flatten(1)
        if self.mid is not None:  # Tucker decomposition: down and up are 1x1, mid is the convolution
            down = torch.einsum("rskl,si->rikl", self.mid.float(), down.flatten(1))
        whole = up @ down.flatten(1) * (self.alpha / self.rank)
        if whole.numel() != torch.Size(shape).numel():
            raise ValueError(tuple(whole.shape))
        return whole.reshape(tuple(shape))


def lora_tensors(parts: Mapping[str, nn.Module], family: str, *, half: bool) -> dict[str, Tensor]:
    """{key: tensor} of the LoRA layers that peft has put into the parts."""
    dtype = torch.float16 if half else torch.float32
    tensors: dict[str, Tensor] = {}
    for part, prefix in _PREFIXES[family].items():
        for path, layer in _peft_layers(parts[part]):
            key = prefix + names.canonical_key(part, path).replace(".", "_")
            tensors[f"{key}.lora_down.weight"] = layer.lora_A[ADAPTER].weight.detach().to("cpu", dtype)
            tensors[f"{key}.lora_up.weight"] = layer.lora_B[ADAPTER].weight.detach().to("cpu", dtype)
            tensors[f"{key}.alpha"] = torch.tensor(float(layer.lora_alpha[ADAPTER]), dtype=dtype)
    return tensors


def read(path: Path, weights: Iterable[str], family: str) -> dict[str, Layer]:
    """The layers of a LoRA file by the weight that each changes; `weights` are a model's, by their own names.

    Raises UserError if the file is no LoRA, is damaged, or has a layer that this model has no place for.
    """
    header = checkpoint.read_header(path)
    if other := next((name for name in header.tensors if _OTHER_KINDS.search(name)), None):
        raise UserError(f"{path}: this is a LyCORIS or DoRA file ({other}); only plain LoRA files can be read.")
    if checkpoint.describe(header).kind != "lora":
        raise UserError(f"{path}: this is not a LoRA file.")
    places, files = _spellings(weights, family), Files()
    layers = {}
    for key, found in _collected(header).items():
        if key not in places:
            raise UserError(f"{path}: its layer {key} has no place in this model; it belongs to another kind.")
        if not {"down", "up"} <= found.keys():
            raise UserError(f"{path}: its layer {key} is incomplete; the file is damaged.")
        parts = {what: files.read(header.tensors[name]) for what, name in found.items()}
        alpha = parts["alpha"].item() if "alpha" in parts else _alpha_beside(header, key, parts["down"].shape[0])
        layers[places[key]] = Layer(parts["down"], parts["up"], float(alpha), parts.get("mid"))
    return layers


def add(path: Path, layers: Mapping[str, Layer], parts: Mapping[str, nn.Module], weight: float) -> None:
    """Adds a file's layers to the modules' weights, times `weight`. Raises UserError if a size differs."""
    for part, module in parts.items():
        for key, parameter in module.named_parameters():
            layer = layers.get(f"{part}/{names.canonical_key(part, key)}")
            if layer is not None:
                with torch.no_grad():
                    parameter += fitting_change(path, key, layer, parameter.shape).to(parameter) * weight


def fitting_change(path: Path, name: str, layer: Layer, shape: Iterable[int]) -> Tensor:
    """The change of the weight `name`. Raises UserError if its size differs."""
    try:
        return layer.change(shape)
    except (ValueError, RuntimeError):
        raise UserError(
            f"{path}: its layer for {name} has another size than this model's; it belongs to another model."
        ) from None


def _peft_layers(module: nn.Module) -> list[tuple[str, LoraLayer]]:
    return [(path, layer) for path, layer in module.named_modules() if isinstance(layer, LoraLayer)]


def _collected(header: Header) -> dict[str, dict[str, str]]:
    """{layer as the file spells it: {down, up, alpha, mid: tensor's name}}."""
    layers: dict[str, dict[str, str]] = {}
    for name in header.tensors:
        for ending, what in _ENDINGS:
            if match := re.fullmatch(rf"(.+?){ending}", name):
                key = re.sub(r"\.processor\.(to_[qkv]|to_out)$", r".\1", match[1])
                layers.setdefault(re.sub(r"\.to_out$", ".to_out.0", key), {})[what] = name
                break
    return layers


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
