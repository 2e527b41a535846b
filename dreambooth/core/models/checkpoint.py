"""What a model file is, told from the names and shapes of its tensors: fast, without torch, no weight loaded."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dreambooth.core.errors import UserError
from dreambooth.core.files import paths
from dreambooth.core.models import embedding_file, webui_config
from dreambooth.core.models.diffusers_folder import INDEX, PARTS, read_folder, read_part
from dreambooth.core.models.families import (
    FAMILIES,
    FAMILIES_BY_CONTEXT,
    LATENT_FACTOR,
    RESOLUTIONS,
    SD2_BASE_RESOLUTION,
)
from dreambooth.core.models.load_overrides import Origin
from dreambooth.core.models.model_file import PICKLES, SUFFIXES, Header, Tensor, read_safetensors
from dreambooth.core.models.pickle_file import read_pickle

PRECISIONS = {"F32": "fp32", "F16": "fp16", "BF16": "bf16", "F64": "fp64", "F8_E4M3": "fp8", "F8_E5M2": "fp8"}

_WHOLE_NUMBERS = ("I64", "I32", "I16", "I8", "U8", "BOOL")

UNET = "model.diffusion_model."
VAE = "first_stage_model."
EMA = "model_ema."
_EDM = ("edm_mean", "edm_std", "edm_vpred.sigma_max")  # that noise levels are continuous: Playground 2.5, CosXL
_OTHER_SCHEDULERS = {"EDM": "edm", "FlowMatch": "flow"}  # how diffusers' classes without timesteps begin
V_PREDICTION, ZTSNR = "v_pred", "ztsnr"  # empty tensors: that it predicts v, that it has zero terminal SNR
_TEXT = {
    "sd1": ("cond_stage_model.transformer.",),
    "sd2": ("cond_stage_model.model.",),
    "sdxl": ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."),
}
_KNOWN = (UNET, VAE, EMA, "cond_stage_model.", "conditioner.")
# Beside quantized weights: what ComfyUI and bitsandbytes multiply them by, without which they are other numbers.
_SCALES = re.compile(r"\.(scaled_fp8|scale_weight|weight_scale|comfy_quant|SCB|weight\.(absmax|quant_map))$")
# What else people have in the same folder: a tensor's name that tells it, and what it is.
_OTHERS = (
    (r"(^|\.)double_blocks\.\d", "it is a Flux model"),
    (r"(^|\.)joint_blocks\.\d", "it is Stable Diffusion 3"),
    (r"^(down_blocks|up_blocks)\.\d.*effnet|^clip_txt_mapper", "it is Stable Cascade"),
    (r"control_model\.|^input_hint_block|^controlnet_", "it is a ControlNet, not a whole model"),
    (r"\.(oft_diag|oft_R)", "it is a LyCORIS file, not a whole model; name the checkpoint it belongs to"),
)
_LORA = re.compile(
    r"\.lora_(down|up|A|B)\.|\.lora(_linear_layer)?\.(down|up)\.|_lora\.(down|up)\.|\.(hada|lokr)_w[12](_[ab])?$"
    r"|\.oft_blocks$"
)
# As trainers write them beside their LoRAs:
_LORA_BASES = {"sd_v1": "sd1", "sd_v2": "sd2", "sdxl_base_v0-9": "sdxl", "sdxl_base_v1-0": "sdxl"}


@dataclass
class About:
    """What a checkpoint, LoRA or embedding is. `reason` says why it cannot be trained from, where it cannot.

    `known_by` says how the prediction type was found: chosen, markers, metadata, yaml, scheduler, file name, assumed.
    """

    kind: str  # checkpoint, lora, embedding, vae, unknown
    family: str  # sd1, sd2, sdxl, unknown
    layout: str  # original, diffusers
    precision: str
    resolution: int
    prediction_type: str
    known_by: str
    zero_terminal_snr: bool
    bytes: int
    tensors: int
    parameters: int
    has_unet: bool = False
    has_vae: bool = False
    has_text_encoder: bool = False
    has_ema: bool = False
    inpainting: bool = False
    stray: list[str] = field(default_factory=list)  # up to ten names that belong to no part of a model
    reason: str = ""
    metadata: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def read_header(path: Path) -> Header:
    """The contents of a model file or Diffusers folder. Raises UserError in one sentence for everything else."""
    try:
        return _header(path)
    except OSError as error:  # a folder that may not be looked into, or a drive that does not answer
        raise UserError(f"{path}: it cannot be reached ({error.strerror}); look at its drive and its rights.") from None


def _header(path: Path) -> Header:
    if path.is_dir():
        return read_folder(path)
    if not path.exists():
        raise UserError(f"{path}: there is no such file.")
    if not path.is_file():  # a pipe would be waited for
        raise UserError(f"{path}: this is no file that can be read from any place; name a model file.")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: this is no model file; name a {', '.join(SUFFIXES)} file or a Diffusers folder.")
    return read_pickle(path) if suffix in PICKLES else read_safetensors(path)


def read_vae(path: Path) -> dict[str, Tensor]:
    """The tensors of a VAE: its own file, a whole checkpoint's, a Diffusers folder's or its part's. Names as there."""
    if paths.is_folder(path) and not paths.is_file(path / INDEX):
        tensors = read_part(path)
    else:
        tensors = read_header(path).tensors
    for prefix in (VAE, "vae/"):
        inside = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        tensors = inside or tensors
    if not any(name.startswith("decoder.conv_in.") for name in tensors):
        raise UserError(f"{path}: this is no VAE of Stable Diffusion; name another file.")
    return {name: t for name, t in tensors.items() if name.startswith(("encoder.", "decoder.", "quant", "post_quant"))}


def describe(header: Header, origin: Origin | None = None) -> About:
    """What the file is; what a person chose in `origin` wins over what the file seems to be."""
    tensors = header.tensors
    about = About(
        kind="unknown",
        family="unknown",
        layout="diffusers" if header.configs else "original",
        precision=_precision(tensors),
        resolution=0,
        prediction_type="epsilon",
        known_by="assumed",
        zero_terminal_snr=False,
        bytes=header.bytes,
        tensors=len(tensors),
        parameters=sum(t.values for t in tensors.values()),
        metadata=header.metadata,
    )
    unet = any(name.startswith((UNET, "unet/")) for name in tensors)
    other = next((what for pattern, what in _OTHERS if any(re.search(pattern, name) for name in tensors)), "")
    if any(_LORA.search(name) for name in tensors):
        about.kind = "lora"
        version = header.metadata.get("ss_base_model_version", "").removesuffix("_v")  # of a model that predicts v
        base_model = _LORA_BASES.get(version, "unknown")
        about.family = base_model if (known := lora_family(tensors)) == "unknown" else known
        about.reason = "this is a LoRA, not a whole model; name the checkpoint that it belongs to"
    elif vectors := embedding_file.parts(tensors):
        about.kind, about.family = "embedding", embedding_file.family(vectors)
        about.reason = (
            "this is a textual-inversion embedding, not a whole model; name the checkpoint that it belongs to"
        )
    elif other:
        about.reason = f"{other}; Stable Diffusion 1, 2 and SDXL can be trained"
    elif unet:
        _describe_checkpoint(header, about, origin or Origin())
    elif any(name.startswith(("decoder.conv_in.", "first_stage_model.decoder.")) for name in tensors):
        about.kind, about.has_vae = "vae", True
        about.reason = "this is a VAE, not a whole model; name the checkpoint that it belongs to"
    else:
        about.reason = "it holds no Stable Diffusion model that we know"
    return about


def family_name(about: Mapping[str, Any]) -> str:
    """What a model is in words, from what was said `as_json`."""
    name = FAMILIES.get(about["family"], "unknown kind")
    return f"{name} inpainting" if about.get("inpainting") else name


def lora_family(tensors: Mapping[str, Tensor]) -> str:
    """The family that a LoRA belongs to, from the width of the text that its layers read."""
    widths = []
    for name, tensor in tensors.items():
        match = re.search(
            r"(.*attn2[._](?:processor\.)?to_[kv].*)(lora_down|lora_A|lora\.down|hada_w1_b|lokr_w1(_b)?$)", name
        )
        if match and len(tensor.shape) > 1:
            seconds = [tensors[key].shape[1] for end in ("", "_b") if (key := f"{match[1]}lokr_w2{end}") in tensors]
            widths.append(tensor.shape[1] * (seconds[0] if seconds else 1))
    return FAMILIES_BY_CONTEXT.get(max(widths, default=0), "unknown")


def fingerprint(path: Path) -> str:
    """Tells one model from another: size, header and 64 samples of each file. Reads 0.3 MB of a file at most."""
    files = (
        [path]
        if path.is_file()
        else sorted(file for part in PARTS for file in (path / part).glob("*") if file.is_file())
    )
    digest = hashlib.sha256()
    for one in files:
        size = one.stat().st_size
        digest.update(str(size).encode())
        with open(one, "rb") as file:
            for part in range(64):
                file.seek(size * part // 64)
                digest.update(file.read(4096))
    return digest.hexdigest()


def _describe_checkpoint(header: Header, about: About, origin: Origin) -> None:
    names = header.tensors
    about.kind = "checkpoint"
    about.has_unet = True
    own = _family(header)
    about.family = origin.family if origin.family != "auto" else own
    about.has_vae = bool(origin.vae) or any(name.startswith((VAE, "vae/")) for name in names)
    about.has_text_encoder = _has_text(header, about.family)
    about.has_ema = any(name.startswith(EMA) and name not in (f"{EMA}decay", f"{EMA}num_updates") for name in names)
    channels, quantized = _channels(names), _quantized(names)
    about.inpainting = channels == 9
    about.stray = [name for name in names if not header.configs and not name.startswith(_KNOWN)][:10]
    about.prediction_type, about.known_by = _prediction(header, about.family, origin)
    about.zero_terminal_snr = _zero_terminal_snr(header, origin)
    about.resolution = origin.resolution or _resolution(header, about)
    about.reason = _why_not(about, channels, origin, own if _has_text(header, own) else "", quantized)


def _family(header: Header) -> str:
    names = header.tensors
    for family, prefixes in _TEXT.items():
        if all(any(name.startswith(prefix) for name in names) for prefix in prefixes):
            return family
    parts = {name.split("/")[0] for name in names if "/" in name}
    if any(name.startswith("conditioner.embedders.0.model.") for name in names) or parts & set(PARTS[2:]) == {PARTS[3]}:
        return "refiner"
    if PARTS[3] in parts:
        return "sdxl"
    widths = {t.shape[1] for name, t in names.items() if name.endswith("attn2.to_k.weight") and len(t.shape) == 2}
    known = {**FAMILIES_BY_CONTEXT, 1280: "refiner"}.get(max(widths, default=0))
    if known or "unet" not in parts:
        return known or "unknown"
    return "sd2" if header.configs["unet"].get("use_linear_projection") else "sd1"


def _has_text(header: Header, family: str) -> bool:
    wanted = _TEXT.get(family, ())
    if header.configs:
        wanted = tuple(f"{part}/" for part in PARTS[2 : 2 + len(wanted)])
    return bool(wanted) and all(any(name.startswith(prefix) for name in header.tensors) for prefix in wanted)


def _channels(names: Mapping[str, Tensor]) -> int:
    first = names.get(f"{UNET}input_blocks.0.0.weight") or names.get("unet/conv_in.weight")
    return first.shape[1] if first and len(first.shape) == 4 else 0


def _quantized(names: Mapping[str, Tensor]) -> str:
    """A tensor that tells that weights are kept as other numbers than they are; empty without any."""
    whole = (name for name, one in names.items() if name.endswith(".weight") and one.dtype in _WHOLE_NUMBERS)
    return next((name for name in names if _SCALES.search(name)), next(whole, ""))


def _prediction(header: Header, family: str, origin: Origin) -> tuple[str, str]:
    """What the UNet predicts, and how that is known; the weights themselves do not say."""
    if origin.prediction_type != "auto":
        return origin.prediction_type, "chosen"
    if any(name in header.tensors for name in _EDM):  # before v: saved by ComfyUI, CosXL has both
        return "edm", "markers"
    if V_PREDICTION in header.tensors:  # what WebUIs go by, while mergers write metadata of another of their sources
        return "v_prediction", "markers"
    prediction = header.metadata.get("modelspec.prediction_type", "").lower()
    if prediction:
        return ("v_prediction" if prediction.startswith("v") else "epsilon"), "metadata"
    if scheduled := _scheduled(header.configs.get("scheduler", {})):
        return scheduled, "scheduler"
    if not header.configs and (beside := webui_config.prediction_beside(header.path, family)):
        return beside, "yaml"
    name = header.path.stem.lower()
    if re.search(r"v[-_ ]?pred", name) or (family == "sd2" and re.search(r"768|[-_]v(?![a-z0-9])", name)):
        return "v_prediction", "file name"
    return "epsilon", "assumed" if family == "sd2" else "the family"


def _scheduled(config: Mapping[str, object]) -> str:
    """What the UNet predicts by the configuration of a Diffusers folder's scheduler; empty if it does not say."""
    kind = str(config.get("_class_name", ""))
    other = next((predicted for start, predicted in _OTHER_SCHEDULERS.items() if kind.startswith(start)), "")
    return other or str(config.get("prediction_type") or "")


def _zero_terminal_snr(header: Header, origin: Origin) -> bool:
    if origin.zero_terminal_snr != "auto":
        return origin.zero_terminal_snr == "on"
    return ZTSNR in header.tensors or bool(header.configs.get("scheduler", {}).get("rescale_betas_zero_snr"))


def _resolution(header: Header, about: About) -> int:
    try:
        return max(int(side) for side in header.metadata.get("modelspec.resolution", "").split("x"))
    except ValueError:
        pass
    size = header.configs.get("unet", {}).get("sample_size")
    if isinstance(size, int):
        return size * LATENT_FACTOR
    if about.family == "sd2" and about.prediction_type != "v_prediction":
        return SD2_BASE_RESOLUTION
    return RESOLUTIONS.get(about.family, RESOLUTIONS["sd1"])


def _precision(tensors: Mapping[str, Tensor]) -> str:
    sizes: dict[str, int] = {}
    for tensor in tensors.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.values
    dominant = max(sizes, key=lambda dtype: sizes[dtype], default="")
    return PRECISIONS.get(dominant, dominant.lower())


_CHANNELS = {
    8: "it edits pictures (InstructPix2Pix); use the plain model it was made from",
    5: "it is a depth model; use the plain model it was made from",
    7: "it is an upscaler",
}


def _why_not(about: About, channels: int, origin: Origin, family_of_text: str, quantized: str) -> str:
    """Why a checkpoint cannot be trained from; empty if it can."""
    known = about.family in FAMILIES
    ztsnr_epsilon = about.zero_terminal_snr and about.prediction_type != "v_prediction"
    reasons = {
        "it is SDXL's refiner, which cannot be trained; name the base model": about.family == "refiner",
        f"its weights are quantized, as {quantized} tells, and cannot be read here; get it in fp16": bool(quantized),
        "it is of an unknown kind; Stable Diffusion 1, 2 and SDXL can be trained (say which with --family)": not known,
        _CHANNELS.get(channels, f"its UNet takes {channels} channels instead of 4"): channels not in (4, 9),
        f"it is {FAMILIES.get(family_of_text)} and not {FAMILIES.get(about.family)}; name another file, or leave its "
        "family at auto": family_of_text in FAMILIES and not about.has_text_encoder,
        "it has no text encoder; use the full file instead of this pruned one": not about.has_text_encoder,
        "it has no VAE; name one with --vae FILE": not about.has_vae,
        f"it predicts {about.prediction_type}; models that predict epsilon or v can be trained": (
            about.prediction_type not in ("epsilon", "v_prediction")
        ),
        "with zero terminal SNR a model must predict v; add --prediction-type v_prediction": ztsnr_epsilon,
        "it holds no EMA weights; leave --weights at normal": origin.weights == "ema" and not about.has_ema,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")
