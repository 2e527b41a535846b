"""What a model file is, read from its header alone: fast, without torch, and without loading a weight.

A .safetensors file starts with the length of its header (8 bytes, little-endian) and the header,
a JSON object of {tensor name: {dtype, shape, data_offsets}} and `__metadata__`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from dreambooth.core.errors import UserError

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
BYTES_PER_VALUE = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}
PRECISIONS = {"F32": "fp32", "F16": "fp16", "BF16": "bf16", "F64": "fp64"}

UNET = "model.diffusion_model."
VAE = "first_stage_model."
CLIP_L = "cond_stage_model.transformer."
OPEN_CLIP = "cond_stage_model.model."
SDXL_TEXT = "conditioner.embedders."
EMA = "model_ema."


@dataclass(frozen=True)
class Tensor:
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    data_start: int


@dataclass
class About:
    """What a checkpoint or LoRA is. `reason` says why it cannot be trained from, where it cannot."""

    kind: str  # checkpoint, lora, unknown
    family: str  # sd1, sd2, sdxl, unknown
    precision: str
    resolution: int
    prediction_type: str
    bytes: int
    tensors: int
    parameters: int
    has_unet: bool = False
    has_vae: bool = False
    has_text_encoder: bool = False
    has_ema: bool = False
    inpainting: bool = False
    reason: str = ""
    metadata: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def read_header(path: Path) -> Header:
    """The header of a .safetensors file. Raises UserError if the file is none, or is cut short."""
    if path.is_dir():
        raise UserError(f"{path}: this is a folder; name a single .safetensors file.")
    if path.suffix.lower() in (".ckpt", ".pt", ".pth", ".bin"):
        raise UserError(f"{path}: {path.suffix} files cannot be read; convert it to .safetensors first.")
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 10 or not 2 <= length <= MAX_HEADER_BYTES:
                raise UserError(f"{path}: this is not a .safetensors file.")
            if length > size - 8:
                raise UserError(f"{path}: the file is cut short; download or copy it again.")
            text = file.read(length)
    except OSError as error:
        raise UserError(f"{path}: the file cannot be read ({error.strerror}).") from None
    header = _parse(path, text, data_start=8 + length)
    expected = header.data_start + max((t.end for t in header.tensors.values()), default=0)
    if size < expected:
        raise UserError(f"{path}: the file is cut short ({size:,} of {expected:,} bytes); download or copy it again.")
    return header


def describe(header: Header) -> About:
    """What the file is, from the names and shapes of its tensors and its metadata."""
    tensors = header.tensors
    about = About(
        kind="unknown",
        family="unknown",
        precision=_precision(tensors),
        resolution=0,
        prediction_type="epsilon",
        bytes=header.data_start + max((t.end for t in tensors.values()), default=0),
        tensors=len(tensors),
        parameters=sum(prod(t.shape) for t in tensors.values()),
        metadata=header.metadata,
    )
    if any(".lora_down." in name or ".lora_A." in name or ".lora.down." in name for name in tensors):
        about.kind = "lora"
        about.family = _lora_family(tensors)
        about.reason = "this is a LoRA, not a whole model; name the checkpoint that it belongs to"
    elif any(name.startswith(UNET) for name in tensors):
        _describe_checkpoint(header, about)
    else:
        about.reason = "it holds no Stable Diffusion model in the original layout"
    return about


def _parse(path: Path, text: bytes, data_start: int) -> Header:
    tensors: dict[str, Tensor] = {}
    try:
        raw = json.loads(text)
        metadata = {str(k): str(v) for k, v in raw.pop("__metadata__", {}).items()}
        for name, entry in raw.items():
            start, end = (int(x) for x in entry["data_offsets"])
            tensor = Tensor(str(entry["dtype"]), tuple(int(n) for n in entry["shape"]), start, end)
            wanted = prod(tensor.shape) * BYTES_PER_VALUE[tensor.dtype]
            if start < 0 or end - start != wanted or min(tensor.shape, default=0) < 0:
                raise ValueError(name)
            tensors[name] = tensor
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(
            f"{path}: the header of this .safetensors file is damaged; download or copy it again."
        ) from None
    return Header(path, tensors, metadata, data_start)


def _describe_checkpoint(header: Header, about: About) -> None:
    tensors = header.tensors
    about.kind = "checkpoint"
    about.has_unet = True
    about.has_vae = any(name.startswith(VAE) for name in tensors)
    about.has_text_encoder = any(name.startswith((CLIP_L, OPEN_CLIP, SDXL_TEXT)) for name in tensors)
    about.has_ema = any(name.startswith(EMA) and "num_updates" not in name for name in tensors)
    about.family = _family(tensors)
    first = tensors.get(f"{UNET}input_blocks.0.0.weight")
    about.inpainting = first is not None and first.shape[1] == 9
    about.prediction_type = header.metadata.get("modelspec.prediction_type", "epsilon")
    about.resolution = _resolution(header.metadata, about.family)
    about.reason = _why_not(about)


def _family(tensors: dict[str, Tensor]) -> str:
    if any(name.startswith(SDXL_TEXT) for name in tensors):
        return "sdxl"
    if any(name.startswith(OPEN_CLIP) for name in tensors):
        return "sd2"
    if any(name.startswith(CLIP_L) for name in tensors):
        return "sd1"
    widths = {t.shape[1] for name, t in tensors.items() if name.endswith("attn2.to_k.weight")}
    return {768: "sd1", 1024: "sd2", 2048: "sdxl"}.get(max(widths, default=0), "unknown")


def _lora_family(tensors: dict[str, Tensor]) -> str:
    widths = {t.shape[1] for name, t in tensors.items() if "attn2_to_k.lora_down" in name}
    return {768: "sd1", 1024: "sd2", 2048: "sdxl"}.get(max(widths, default=0), "unknown")


def _resolution(metadata: dict[str, str], family: str) -> int:
    try:
        return max(int(side) for side in metadata.get("modelspec.resolution", "").split("x"))
    except ValueError:
        return {"sd1": 512, "sd2": 512, "sdxl": 1024}.get(family, 512)


def _why_not(about: About) -> str:
    if about.inpainting:
        return "it is an inpainting model, which cannot be trained yet; use the plain model it was made from"
    if about.family != "sd1":
        name = {"sd2": "Stable Diffusion 2", "sdxl": "SDXL"}.get(about.family, "an unknown kind of model")
        return f"it is {name}; only Stable Diffusion 1 can be trained yet"
    if about.prediction_type not in ("epsilon", "eps"):
        return f"it predicts {about.prediction_type}; only epsilon models can be trained yet"
    missing = [name for name, there in (("VAE", about.has_vae), ("text encoder", about.has_text_encoder)) if not there]
    return f"it has no {' and no '.join(missing)}; use the full file instead of this pruned one" if missing else ""


def _precision(tensors: dict[str, Tensor]) -> str:
    sizes: dict[str, int] = {}
    for tensor in tensors.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + prod(tensor.shape)
    dominant = max(sizes, key=lambda dtype: sizes[dtype], default="")
    return PRECISIONS.get(dominant, dominant.lower())


def fingerprint(path: Path) -> str:
    """Tells one model file from another: its size, header and 64 samples of its weights. Reads 0.3 MB at most."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for part in range(64):
            file.seek(size * part // 64)
            digest.update(file.read(4096))
    return digest.hexdigest()
