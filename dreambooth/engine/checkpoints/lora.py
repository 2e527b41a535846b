"""LoRA files in the spelling that every WebUI reads (kohya's), with the true alpha.

A layer's key is `lora_unet_` or `lora_te_` and the layer's diffusers path with `_` for `.`; under it lie
`lora_down.weight` (rank, in), `lora_up.weight` (out, rank) and `alpha`. Readers scale by alpha / rank,
which is exactly how the layer was trained.
"""

from __future__ import annotations

from pathlib import Path

import torch
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from torch import Tensor, nn

from dreambooth.core import checkpoint
from dreambooth.core.errors import UserError

ADAPTER = "default"
UNET = "lora_unet"
TEXT_ENCODER = "lora_te_text_model"


def lora_tensors(unet: nn.Module | None, text_encoder: nn.Module | None, *, half: bool) -> dict[str, Tensor]:
    """{key: tensor} of the LoRA layers that peft has put into the modules."""
    dtype = torch.float16 if half else torch.float32
    tensors: dict[str, Tensor] = {}
    for prefix, module in ((UNET, unet), (TEXT_ENCODER, text_encoder)):
        for path, layer in _layers(module):
            key = layer_key(prefix, path)
            tensors[f"{key}.lora_down.weight"] = layer.lora_A[ADAPTER].weight.detach().to("cpu", dtype)
            tensors[f"{key}.lora_up.weight"] = layer.lora_B[ADAPTER].weight.detach().to("cpu", dtype)
            tensors[f"{key}.alpha"] = torch.tensor(float(layer.lora_alpha[ADAPTER]), dtype=dtype)
    return tensors


def layer_key(prefix: str, path: str) -> str:
    return f"{prefix}_{path.removeprefix('text_model.').replace('.', '_')}"


def _layers(module: nn.Module | None) -> list[tuple[str, LoraLayer]]:
    if module is None:
        return []
    return [(path, layer) for path, layer in module.named_modules() if isinstance(layer, LoraLayer)]


def apply(path: Path, unet: nn.Module, text_encoder: nn.Module, weight: float) -> None:
    """Adds a LoRA file to the modules' weights: W + weight * alpha / rank * up @ down.

    Raises UserError if a layer of the file has no place in this model.
    """
    header = checkpoint.read_header(path)
    if checkpoint.describe(header).kind != "lora":
        raise UserError(f"{path}: this is not a LoRA file.")
    places = {layer_key(UNET, name): m for name, m in unet.named_modules() if hasattr(m, "weight")}
    places.update(
        {layer_key(TEXT_ENCODER, name): m for name, m in text_encoder.named_modules() if hasattr(m, "weight")}
    )
    with safe_open(path, framework="pt") as file:
        for key in sorted({name.split(".")[0] for name in header.tensors}):
            if key not in places:
                raise UserError(f"{path}: its layer {key} has no place in this model; it belongs to another kind.")
            down, up, alpha = (
                file.get_tensor(f"{key}.{n}").float() for n in ("lora_down.weight", "lora_up.weight", "alpha")
            )
            target = places[key].weight
            change = up.flatten(1) @ down.flatten(1) * (weight * alpha.item() / down.shape[0])
            if change.numel() != target.numel():
                raise UserError(
                    f"{path}: its layer {key} has another size than this model's; it belongs to another model."
                )
            with torch.no_grad():
                target += change.reshape(target.shape).to(target.device, target.dtype)
