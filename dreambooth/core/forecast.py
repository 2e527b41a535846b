"""What a run will take, from the table of contents of the model's file: disk, and about how much memory.

Disk is counted. Memory is an estimate, from these rules:

- weights: a LoRA's model lies in half precision where training is mixed, the rest and the VAE in full;
- what is trained is held in full precision, or in bf16 where that is asked for, with a gradient of the same; an
  optimizer keeps what `OPTIMIZER_BYTES` says, an EMA 4 bytes a value more, and in mixed precision a fully trained model
  in full precision has a half copy;
- activations: each layer of the UNet keeps about 2.2 values for each value that it puts out, a third of that with
  gradient checkpointing (counted by autograd's saved tensors on models of the shapes of SD 1 and SDXL: 2.0 and 2.0 for
  full fine-tuning, 2.4 for a LoRA). They grow with the batch and with the area of the pictures.
- encoding the pictures, before the first step, takes about 1.5 KB a pixel beside the model: three times what the VAE's
  first layers put out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from dreambooth.core.buckets import Bucket
from dreambooth.core.budget import Budget
from dreambooth.core.checkpoint import UNET, VAE
from dreambooth.core.model_file import Header, Tensor
from dreambooth.core.settings import Settings
from dreambooth.core.settings.training import UNET_LAYERS, Lora

KEPT = 2.2  # values kept for backward, for each value that a layer puts out
KEPT_CHECKPOINTED = 0.3  # of those
ENCODING_BYTES_PER_PIXEL = 3 * 128 * 4
PIXELS_AT_ONCE = 2**20  # of pictures that are encoded together
DRIVER_BYTES = 500_000_000  # what a GPU's driver and libraries hold for a process
OPTIMIZER_BYTES = {  # kept for each trained value
    "adamw": 8.0,
    "adamw_8bit": 2.0,
    "paged_adamw_8bit": 2.0,
    "lion": 4.0,
    "lion_8bit": 1.0,
    "paged_lion_8bit": 1.0,
    "adafactor": 0.1,  # a row and a column of each matrix; the sizes of SD 1's UNet
    "came": 4.1,  # a mean, and two rows and columns
    "prodigy": 16.0,
    "adamw_schedule_free": 8.0,
}
_LATENT = 8  # pixels a latent, along each side

_UNET_PREFIXES, _VAE_PREFIXES = (UNET, "unet/"), (VAE, "vae/")
_TEXT_PREFIXES = ("cond_stage_model.", "conditioner.", "text_encoder")
_ATTENTION = r"attn[12]\.(to_q|to_k|to_v|to_out\.0)"
_TRANSFORMER = rf"{_ATTENTION}|ff\.net\.(0\.proj|2)|\.proj_in|\.proj_out"
_CONVOLUTIONS = (
    r"in_layers\.2|out_layers\.3|emb_layers\.1|skip_connection|\.op|\d\.conv"  # original names
    r"|conv1|conv2|conv_shortcut|time_emb_proj|samplers\.0\.conv"  # diffusers' names
)
_LORA_LAYERS = {
    "attention": _ATTENTION,
    "transformer": _TRANSFORMER,
    "convolutions": f"{_TRANSFORMER}|{_CONVOLUTIONS}",
}
_TEXT_LAYERS = r"(q_proj|k_proj|v_proj|out_proj|fc1|fc2|c_fc|c_proj|in_proj_weight)(\.weight)?$"


@dataclass(frozen=True)
class Memory:
    """Bytes on the device at the peak of training, or of encoding where that takes more."""

    weights: int
    gradients: int
    optimizer: int
    averages: int
    activations: int
    other: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.averages + self.activations + self.other


def memory(header: Header, settings: Settings, largest: Bucket) -> Memory:
    """About how much memory of a GPU training takes, in bytes; `largest` is the largest bucket in use."""
    mixed = settings.tuning.mixed_precision != "no"
    values = 2 if mixed else 4  # bytes a value while computing
    unet, text, vae = (_values(header, some) for some in (_UNET_PREFIXES, _TEXT_PREFIXES, _VAE_PREFIXES))
    trained = _trained(header, settings)
    own = 2 if settings.memory.bf16_weights else 4  # bytes a value that is trained
    weights = (unet + text) * (values if settings.is_lora else own) + vae * 4
    if settings.is_lora:
        weights += trained * 4
    batch = settings.batching.train_batch_size * (2 if _has_class_pictures(settings) else 1)
    kept = KEPT * (KEPT_CHECKPOINTED if settings.batching.gradient_checkpointing else 1)
    activations = int(outputs(header) * (largest.area // _LATENT**2) * batch * kept * values)
    if mixed and not settings.is_lora and own == 4:
        activations += trained * 2
    optimizer = int(trained * OPTIMIZER_BYTES[settings.optimizer.name])
    averages = trained * 4 * settings.tuning.use_ema
    training = trained * own + optimizer + averages + activations
    encoding = largest.area * pictures_at_once(largest) * ENCODING_BYTES_PER_PIXEL
    activations += max(0, encoding - training)
    return Memory(weights, trained * own, optimizer, averages, activations, DRIVER_BYTES)


def pictures_at_once(bucket: Bucket) -> int:
    """How many pictures are encoded together."""
    return max(1, min(8, PIXELS_AT_ONCE // bucket.area))


def save_bytes(header: Header, settings: Settings) -> int:
    """The size of each LoRA or checkpoint that a run writes."""
    trained = _trained(header, settings)
    if settings.saving.half_model:
        return 2 * (trained if settings.is_lora else _values(header, ("",)))
    kept = 0 if settings.is_lora else sum(t.end - t.start for t in _untrained(header, settings))
    return trained * 4 + kept


def saves(settings: Settings, length: Budget) -> int:
    """How many of them a run of this length writes."""
    intervals = settings.intervals
    return 1 + length.times_due(intervals.save_model_every, intervals.save_model_every_steps)


def state_bytes(header: Header, settings: Settings) -> int:
    """The size of a state: the trained weights, what the optimizer keeps, and the EMA."""
    own = 2 if settings.memory.bf16_weights else 4
    each = own + OPTIMIZER_BYTES[settings.optimizer.name] + 4 * settings.tuning.use_ema
    return int(_trained(header, settings) * each)


def latent_bytes(buckets: Iterable[Bucket]) -> int:
    """The size of encoded pictures: mean and standard deviation, 4 channels of 4 bytes each."""
    return sum(bucket.area // _LATENT**2 * 2 * 4 * 4 for bucket in buckets)


def disk_bytes(header: Header, settings: Settings, length: Budget) -> int:
    """The most that a run takes at once: what it writes, its states, and one more while it is written."""
    at_once = states_kept(settings, length) + 1
    return save_bytes(header, settings) * saves(settings, length) + at_once * state_bytes(header, settings)


def states_kept(settings: Settings, length: Budget) -> int:
    """How many states a run keeps at most: the newest, and one for each so many epochs."""
    intervals = settings.intervals
    kept = intervals.states_kept + length.times_due(intervals.states_kept_every)
    saved = length.times_due(intervals.save_state_every, intervals.save_state_every_steps)
    return max(1, min(kept, saved))


def outputs(header: Header) -> float:
    """How many values all layers of the UNet put out for each latent pixel."""
    unet = {name: t for name, t in _part(header, _UNET_PREFIXES).items() if _is_layer(name, t)}
    levels = {name: _level(name, unet) for name in unet}
    return sum(t.shape[0] * 0.25 ** levels[name] for name, t in unet.items())


def _trained(header: Header, settings: Settings) -> int:
    """How many values are trained."""
    unet = _part(header, _UNET_PREFIXES) if settings.tuning.train_unet else {}
    text = _part(header, _TEXT_PREFIXES) if settings.tuning.text_encoder_learns else {}
    if not settings.is_lora:
        learning = [t for name, t in unet.items() if re.search(UNET_LAYERS[settings.tuning.unet_layers], name)]
        return sum(t.values for t in (*learning, *text.values()))
    layers = [t for name, t in unet.items() if re.search(rf"({_LORA_LAYERS[settings.lora.layers]})\.weight$", name)]
    layers += [t for name, t in text.items() if re.search(_TEXT_LAYERS, name)]
    return sum(_lora_values(t, settings.lora) for t in layers if len(t.shape) > 1)


def _lora_values(layer: Tensor, lora: Lora) -> int:
    """How many values a LoRA of some kind has for a layer."""
    out, inputs = layer.shape[0], layer.values // layer.shape[0]
    plain = lora.rank * (out + inputs)
    if lora.kind == "oft":
        return out * max(n for n in range(1, min(lora.rank, out) + 1) if out % n == 0)
    if lora.kind == "lokr":
        pixels = inputs // layer.shape[1]
        (a, b), (c, d) = _split(out, lora.lokr_factor), _split(layer.shape[1], lora.lokr_factor)
        second = b * d * pixels if lora.rank >= max(b, d) / 2 else lora.rank * (b + d * pixels)
        return a * c + second
    return {"lora": plain, "dora": plain + layer.shape[1], "loha": 2 * plain}[lora.kind]


def _split(side: int, factor: int) -> tuple[int, int]:
    """A side as the product that a LoKr splits it into."""
    if factor and side % factor == 0:
        return factor, side // factor
    below = [n for n in range(1, int(side**0.5) + 1) if side % n == 0 and (not factor or n <= factor)]
    return below[-1], side // below[-1]


def _untrained(header: Header, settings: Settings) -> list[Tensor]:
    """The tensors that full fine-tuning leaves as they are in the file."""
    trained: tuple[str, ...] = _UNET_PREFIXES if settings.tuning.train_unet else ()
    trained += _TEXT_PREFIXES if settings.tuning.text_encoder_learns else ()
    return [tensor for name, tensor in header.tensors.items() if not name.startswith(trained)]


def _is_layer(name: str, tensor: Tensor) -> bool:
    """Whether a weight works on every pixel: not on the words, the timestep or the size."""
    words_or_time = r"attn2\.to_[kv]|emb_layers|time_emb|time_embed|label_emb|add_embedding|norm"
    return name.endswith(".weight") and len(tensor.shape) > 1 and not re.search(words_or_time, name)


def _level(name: str, unet: dict[str, Tensor]) -> int:
    """How often the picture has been halved where a layer of the UNet puts out."""
    down = {int(m[1]) for n in unet if (m := re.match(r"input_blocks\.(\d+)\.0\.op\.", n))}
    up = {int(m[1]) for n in unet if (m := re.match(r"output_blocks\.(\d+)\.\d\.conv\.", n))}
    blocks = len({n.split(".")[1] for n in unet if n.startswith("down_blocks.")})
    if found := re.match(r"input_blocks\.(\d+)\.", name):
        return sum(at <= int(found[1]) for at in down)
    if found := re.match(r"output_blocks\.(\d+)\.(\d\.conv\.)?", name):
        return len(down) - sum(at < int(found[1]) or (at == int(found[1]) and bool(found[2])) for at in up)
    if found := re.match(r"down_blocks\.(\d+)\.(downsamplers)?", name):
        return int(found[1]) + bool(found[2])
    if found := re.match(r"up_blocks\.(\d+)\.(upsamplers)?", name):
        return blocks - 1 - int(found[1]) - bool(found[2])
    return max(len(down), blocks - 1) if name.startswith(("middle_block.", "mid_block.")) else 0


def _has_class_pictures(settings: Settings) -> bool:
    return any(
        concept.class_mode == "folder" or (concept.class_mode == "fill" and concept.num_class_images_per)
        for concept in settings.concepts
    )


def _part(header: Header, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """One part's tensors, their names without the part's prefix."""
    return {
        name[len(prefix) :]: tensor
        for prefix in prefixes
        for name, tensor in header.tensors.items()
        if name.startswith(prefix)
    }


def _values(header: Header, prefixes: tuple[str, ...]) -> int:
    return sum(tensor.values for tensor in _part(header, prefixes).values())
