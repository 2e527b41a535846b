"""What a LoRA file holds, from its header alone and without torch: its layers, the kind of each, and the weight that it
changes, in all spellings that are about."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from dreambooth.core.errors import UserError
from dreambooth.core.models import checkpoint
from dreambooth.core.models.embedding_file import BUNDLED
from dreambooth.core.models.model_file import Header, Tensor
from dreambooth.engine.checkpoints import names, peft_config
from dreambooth.engine.checkpoints.names import Place

OFT = ("oft_blocks",)
UNBOUNDED = 1000.0  # as an OFT's alpha, which is the most that it may turn: more than any does
LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")

PREFIXES = {
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
    (r"\.lora_linear_layer\.down\.weight", "down"),  # diffusers' of text encoders
    (r"\.lora_linear_layer\.up\.weight", "up"),
    (r"\.lora_A(\.\w+)?\.weight", "down"),
    (r"\.lora_B(\.\w+)?\.weight", "up"),
    *((rf"\.{name}", name) for name in (*LOHA, *LOKR, *OFT, "dora_scale")),
)
_OTHER_KINDS = re.compile(r"\.(oft_diag|oft_R|rescale|boft|ia3|diff(_b)?$|lora_magnitude|on_input)")


@dataclass(frozen=True)
class Outline:
    """A layer: `key` as the file spells it, and its tensors by what they are (down, up, alpha, LyCORIS' names)."""

    kind: str  # lora, loha, lokr or oft
    key: str = ""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def is_dora(self) -> bool:
        return "dora_scale" in self.tensors

    @property
    def is_bounded(self) -> bool:
        """Whether it is an OFT that may turn only so far, which is what its alpha says where it is neither 0 nor as
        large as none can be."""
        alpha = self.tensors.get("alpha") if self.kind == "oft" else None
        return alpha is not None and any(_bytes(alpha)) and not _value(alpha) >= UNBOUNDED


def open_file(path: Path) -> Header:
    """Raises UserError if the file is not there, is damaged, or is no LoRA that can be read."""
    header = checkpoint.read_header(path)
    if other := next((name for name in header.tensors if _OTHER_KINDS.search(name)), None):
        raise UserError(f"{path}: this LyCORIS file ({other}) cannot be read; only LoRA, DoRA, LoHa, LoKr and OFT can.")
    if checkpoint.describe(header).kind != "lora":
        raise UserError(f"{path}: this is not a LoRA file; name another.")
    return header


def outlines(header: Header, weights: Iterable[str], family: str) -> dict[str, Outline]:
    """The layers by the weight that each changes; `weights` are a model's, by their own names.

    Raises UserError for a layer that is damaged, cannot be read, or that this model has no place for.
    """
    path, places, found = header.path, spellings(weights, family), dict[str, Outline]()
    collected, unknown = _collected(header)
    peft_config.read(header)
    if unknown:
        raise UserError(
            f"{path}: its tensor {unknown[0]} is of a kind that is not known here, and without it the file would do "
            "something else than it was made for; take another file."
        )
    for key, tensors in collected.items():
        if key not in places:
            raise UserError(f"{path}: its layer {key} has no place in this model; it belongs to another kind.")
        if twin := found.get(places[key]):
            raise UserError(
                f"{path}: its layers {twin.key} and {key} change one and the same weight, where readers take both or "
                "one; take another file."
            )
        if "dora_scale" in tensors and (len(lengths := tensors["dora_scale"].shape) < 2 or lengths[0] != 1):
            raise UserError(
                f"{path}: its layer {key} is a DoRA whose lengths are those of outputs, which WebUIs read in unlike "
                "ways; only those of inputs can be read."
            )
        shapes = {what: tensor.shape for what, tensor in tensors.items()}
        kind, alpha = _kind(shapes), shapes.pop("alpha", ())
        if not kind or prod(alpha) != 1 or not all(len(shape) > 1 and all(shape) for shape in shapes.values()):
            raise UserError(f"{path}: its layer {key} is incomplete; the file is damaged.")
        found[places[key]] = Outline(kind, key, tensors)
    return found


def _kind(shapes: Mapping[str, Sequence[int]]) -> str:
    """The kind of the layer that tensors make, by what they are; empty if some are missing."""
    if {"down", "up"} <= shapes.keys():
        return "lora"
    if set(LOHA[:4]) <= shapes.keys():
        return "loha"
    if all(side in shapes or {f"{side}_a", f"{side}_b"} <= shapes.keys() for side in ("lokr_w1", "lokr_w2")):
        return "lokr"
    if set(OFT) <= shapes.keys() and len(shapes["oft_blocks"]) == 3 and "dora_scale" not in shapes:
        return "oft"
    return ""


def _bytes(tensor: Tensor) -> bytes:
    with open(tensor.file, "rb") as file:
        file.seek(tensor.start)
        return file.read(tensor.end - tensor.start)


def _value(tensor: Tensor) -> float:
    """The one number of a tensor in a precision that LoRAs are written in; of another 0."""
    content = _bytes(tensor)
    if tensor.dtype == "BF16":  # the upper half of a number of 32 bits
        return float(struct.unpack("<f", b"\0\0" + content)[0])
    form = {"F16": "<e", "F32": "<f", "F64": "<d"}.get(tensor.dtype)
    return float(struct.unpack(form, content)[0]) if form else 0.0


def _collected(header: Header) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """{layer as the file spells it: {down, up, alpha, mid, or LyCORIS' name of it: tensor}}, and the tensors whose
    ending is none of these."""
    layers: dict[str, dict[str, Tensor]] = {}
    unknown: list[str] = []
    for name, tensor in header.tensors.items():
        if name.startswith(BUNDLED):  # a word, and no layer
            continue
        for ending, what in _ENDINGS:
            if match := re.fullmatch(rf"(.+?){ending}", name):
                key = re.sub(r"\.processor\.(to_[qkv]|to_out)$", r".\1", match[1])
                layers.setdefault(re.sub(r"\.to_out$", ".to_out.0", key), {})[what] = tensor
                break
        else:
            unknown.append(name)
    return layers, unknown


def spellings(weights: Iterable[str], family: str) -> dict[str, str]:
    """{a layer's key in any spelling: the weight's own name}."""
    places: dict[str, str] = {}
    own = [name for name in weights if name.endswith(".weight") and not name.startswith("vae/")]
    originals = names.to_original(own, family)
    for name in own:
        part, _, key = name.removesuffix(".weight").partition("/")
        for spelled in _spelled(part, key, PREFIXES[family][part], family):
            places.setdefault(spelled, name)
        if part == "unet":  # kohya's SDXL scripts name the UNet's layers as the original file does
            places[_original_key(originals[name])] = name
    return places


def keys(weights: Iterable[str], family: str) -> dict[str, str]:
    """{a weight's own name: its layer's key in a file that is written}. Of SDXL's UNet it is the original name, as
    kohya's scripts have it: by diffusers' A1111 misses one layer, and diffusers reads no file of both."""
    own = [name for name in weights if name.endswith(".weight") and not name.startswith("vae/")]
    originals, written = names.to_original(own, family), dict[str, str]()
    for name in own:
        part, _, key = name.removesuffix(".weight").partition("/")
        is_original = family == "sdxl" and part == "unet"
        spelled = PREFIXES[family][part] + key.replace(".", "_")
        written[name] = _original_key(originals[name]) if is_original else spelled
    return written


def _original_key(place: Place) -> str:
    name = place.name.removesuffix(".weight").replace("model.diffusion_model.", "lora_unet_", 1)
    return name.replace(".", "_")


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
