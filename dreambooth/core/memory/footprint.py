"""How much GPU memory training takes.

    total = DRIVER_BYTES + max(base model + class images, persistent + max(training step, previews))
    persistent = base model + adapters + optimizer + EMA weights + cached latents and text embeddings

Class images are drawn before adapters, optimizer and EMA weights are there, previews between training steps. A step
holds gradients and activations: footprint_table.py has what both take at each moment of it, and the most of both
together counts. With CUDA graphs that is persistent, too. DRIVER_BYTES and what headroom.py leaves free are not counted
but taken from figures of others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dreambooth.core import engine_capabilities
from dreambooth.core.memory import footprint_table
from dreambooth.core.memory.drawing_memory import Drawing
from dreambooth.core.memory.footprint_table import Moments, StepKind, StepSize
from dreambooth.core.models.anatomy import Anatomy
from dreambooth.core.models.families import CHUNK_TOKENS, LATENT_FACTOR, PROMPT_TOKENS
from dreambooth.core.settings import Settings
from dreambooth.core.settings.dataset import Concept

# CUDA's context, which loads kernels as they are used: 287 MB (pytorch/pytorch#86509) to 400 MB (#109888), and cuDNN's
# and cuBLAS's workspaces.
DRIVER_BYTES = 500_000_000
OPTIMIZER_BYTES = {  # the state of each trained value
    "adamw": 8.0,
    "adamw_8bit": 2.0,
    "paged_adamw_8bit": 2.0,
    "lion": 4.0,
    "lion_8bit": 1.0,
    "paged_lion_8bit": 1.0,
    "adafactor": 0.01,  # a row and a column of each weight, and a mean where beta1 asks for it; see optimizer_bytes
    "came": 4.02,  # a mean, and two rows and columns
    "prodigy": 16.0,
    "adamw_schedule_free": 8.0,
}
_ROWS_AND_COLUMNS = {"adafactor": 1, "came": 2}
_MEAN_BYTES = 4.0
PIXELS_AT_ONCE = 2**18  # of images that are encoded together
TEXTS_ON_DEVICE = 2**28  # bytes of cached text embeddings; more stay in the computer's own memory
LATENTS_ON_DEVICE = 2**30  # bytes of cached latents; the same
_SLICED = 2  # times the activations of a step with sliced attention, whose slices are kept for the backward pass
GRADIENTS_AT_ONCE = 2**25  # bytes of gradients that are applied together in the backward pass
_QUANTIZED_BYTES = {"int8": 1.0, "nf4": 0.5 + 4 / 64}  # of each value; the scales of int8 are few
# Of the activations before a LoRA's first block this share is held all the same: the skip connections; and with
# gradient checkpointing also the largest block while it is computed again. The most that was counted on SD 1 and SDXL.
_HELD_BEFORE = {"whole": 0.06, "checkpointed": 0.5}
_ONE_WEIGHT = 0.6  # the largest weight's share of the largest block, and the middle block's, which has no checkpoint
_ROUNDING_BYTES = 2 * 4 * 2**25  # weights and gradients in float32 while their update is rounded to bf16
_UPDATE_BYTES = 13  # of each value of a bf16 weight while it is updated: itself, gradient and update in float32


@dataclass(frozen=True)
class Memory:
    """Bytes on the device at the peak of training, or of encoding or drawing where that takes more."""

    weights: int
    gradients: int
    optimizer: int
    averages: int
    activations: int
    other: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.averages + self.activations + self.other


def needs(
    settings: Settings, model: Anatomy, family: str, area: int, *, to_draw: bool = True, cached: int = 0
) -> Memory:
    """About how much memory training takes; `area` is the pixels of the largest bucket in use.

    `to_draw` is false where all class images that are asked for are there already; `cached` is what cached latents and
    text embeddings take on the device, where that is known.

    Encoding images is left out: where it does not fit, the UNet comes to the device after it, or the CPU encodes them
    (see engine/run/dataset.py).
    """
    trained = model.trained(settings)
    trained_on_device = trained - _trained_in_ram(settings, model)
    base = _base_on_device(settings, model)
    adapters = 0 if settings.is_full else trained * _trained_value_bytes(settings)
    optimizer = int(trained_on_device * optimizer_bytes(settings))
    ema = 4 * trained_on_device if settings.tuning.use_ema else 0
    step = step_bytes(settings, model, family, area)
    persistent = base + adapters + optimizer + ema + cached
    graphs = step if settings.tuning.cuda_graphs else 0  # nothing else can use their memory
    peak = persistent + graphs + max(step, _preview_bytes(settings, model, family, area))
    if to_draw:
        peak = max(peak, base + _class_picture_bytes(settings, model, family, area))
    gradients = _gradient_bytes(settings, model)
    activations = max(0, peak - persistent - gradients)
    return Memory(base + adapters, gradients, optimizer, ema, activations, DRIVER_BYTES + cached)


def training_bytes(settings: Settings, model: Anatomy, family: str, area: int) -> int:
    """The total of the training steps alone, without class images and previews."""
    silent = replace(settings, previews=replace(settings.previews, count=0))
    return needs(silent, model, family, area, to_draw=False).total


def cached_bytes(settings: Settings, model: Anatomy, texts: int, latents: int) -> int:
    """What the device holds of the cached embeddings of so many texts, and of so many bytes of cached latents."""
    pieces = settings.tuning.max_token_length // PROMPT_TOKENS
    embeddings = 0 if settings.text_learns else 4 * model.word * CHUNK_TOKENS * pieces * texts
    on_device = 0
    if embeddings <= TEXTS_ON_DEVICE:
        on_device += embeddings
    if latents <= LATENTS_ON_DEVICE:
        on_device += latents
    return on_device


def optimizer_bytes(settings: Settings) -> float:
    """What the optimizer keeps for each trained value."""
    name = settings.optimizer.name
    # A LoRA's matrices are as narrow as its rank, so that their long side is that share of all their values.
    rows_and_columns = 4 * _ROWS_AND_COLUMNS.get(name, 0) / settings.lora.rank if settings.is_lora else 0
    mean = _MEAN_BYTES if name == "adafactor" and settings.optimizer.beta1 else 0
    return OPTIMIZER_BYTES[name] + rows_and_columns + mean


def step_bytes(settings: Settings, model: Anatomy, family: str, area: int) -> int:
    """The most that a training step holds beside what is persistent: activations, gradients, and copies of weights that
    are streamed or quantized."""
    peak = _step_peak(settings, model, family, area, _gradient_bytes(settings, model))
    if settings.memory.unet_weights == "whole":
        return peak
    if not _trains_streamed(settings):
        return peak + _fetched_bytes(settings, model)
    # There are the weights of the current block and of the next one, which is fetched ahead. While the current block's
    # largest weight is updated, there are its gradient, optimizer state and update too, in float32 where they are
    # rounded to bf16, and half of the activations.
    own = _base_value_bytes(settings)
    updated = 2 * own + optimizer_bytes(settings) + (12 if settings.memory.bf16_weights else 4)
    update = model.largest_block * (own + _ONE_WEIGHT * updated) + peak / 2
    return int(max(peak + model.largest_block * own * _ONE_WEIGHT, update)) + model.largest_block * own


def computer_bytes(settings: Settings, model: Anatomy) -> int:
    """How much of the computer's own memory streamed weights take, with the optimizer state and EMA weights of trained
    ones."""
    if settings.memory.unet_weights != "streamed":
        return 0
    state = optimizer_bytes(settings) + (4 if settings.tuning.use_ema else 0)
    return int(model.blocks * _base_value_bytes(settings) + state * _trained_in_ram(settings, model))


def pictures_at_once(area: int) -> int:
    """How many images of so many pixels are encoded together."""
    return max(1, min(8, PIXELS_AT_ONCE // area))


def _trained_value_bytes(settings: Settings) -> int:
    """Bytes of each value that is trained, and of its gradient."""
    return 2 if settings.memory.bf16_weights else 4


def _base_value_bytes(settings: Settings) -> int:
    """Bytes of each value of the base model."""
    if settings.is_full:
        return _trained_value_bytes(settings)
    return 4 if _precision(settings) == "no" else 2


def _precision(settings: Settings) -> str:
    if settings.memory.bf16_weights:
        return "bf16"
    chosen = settings.tuning.mixed_precision
    is_full = chosen == "no" or (chosen == "auto" and engine_capabilities.takes_full_precision())
    return "no" if is_full else "mixed"


def _trains_streamed(settings: Settings) -> bool:
    """Whether the weights that are trained are streamed from the computer's memory."""
    return settings.memory.unet_weights == "streamed" and settings.is_full and settings.tuning.train_unet


def _trained_in_ram(settings: Settings, model: Anatomy) -> int:
    """How many trained values are kept in the computer's memory, with their optimizer state."""
    if not _trains_streamed(settings):
        return 0
    return min(model.blocks, model.alone.get(settings.tuning.unet_layers, model.unet))


def _base_on_device(settings: Settings, model: Anatomy) -> int:
    """The base model's weights that stay on the device: the UNet's, and those of text encoders that encode captions at
    every step."""
    value_bytes, kept_as = _base_value_bytes(settings), settings.memory.unet_weights
    text = model.read_anew(settings) * value_bytes
    if kept_as == "whole":
        return model.unet * value_bytes + text
    outside = (model.unet - model.blocks) * value_bytes
    return int(outside + model.blocks * _QUANTIZED_BYTES.get(kept_as, 0) + text)


def _gradient_bytes(settings: Settings, model: Anatomy) -> int:
    """The most gradients that are there at once, without those of streamed weights."""
    gradients = (model.trained(settings) - _trained_in_ram(settings, model)) * _trained_value_bytes(settings)
    return min(gradients, GRADIENTS_AT_ONCE) if settings.memory.step_in_backward else gradients


def _step_peak(settings: Settings, model: Anatomy, family: str, area: int, gradients: int) -> int:
    """The most that a step holds at once, `gradients` bytes of gradients included, with all weights on the device."""
    batch = settings.batching.train_batch_size
    if _has_class_pictures(settings):
        batch *= 2
    accumulates = settings.batching.gradient_accumulation_steps > 1
    in_backward = settings.memory.step_in_backward
    whole_sets = 1 if accumulates or in_backward else 0  # of gradients, there at every moment
    if accumulates and settings.tuning.trace_steps:
        grows = True  # a traced step's new gradients, beside those that they are added to
        if settings.tuning.cuda_graphs:
            whole_sets += 1  # those of a graph are copied before they are added
    else:
        grows = whole_sets == 0
    text = _text_bytes(settings, model, family, batch)
    sliced = _SLICED if settings.memory.attention == "sliced" else 1
    peak = 0.0
    for share, activations in _moments(settings, model, family, batch, area // LATENT_FACTOR**2):
        sets = whole_sets + (share if grows else 0)
        peak = max(peak, activations * sliced + text + gradients * sets)
    return int(max(peak, _update_bytes(settings, model, gradients)))


def _update_bytes(settings: Settings, model: Anatomy, gradients: int) -> int:
    """What the optimizer's step holds, after the backward pass has let go of its activations."""
    held = gradients
    if settings.memory.bf16_weights:
        rounding = _ROUNDING_BYTES
        if settings.memory.step_in_backward:
            rounding = max(rounding, int(model.largest_block * _ONE_WEIGHT * _UPDATE_BYTES) - gradients)
        held += rounding
    if settings.optimizer.name == "adamw_schedule_free":  # works on all weights at once
        held += 4 * model.trained(settings)
    return held


def _moments(settings: Settings, model: Anatomy, family: str, batch: int, pixels: int) -> Moments:
    """The activations of the UNet at each moment of a step; `pixels` are those of a latent."""
    kind = StepKind("full", "all", _precision(settings))
    if settings.is_lora:
        kind = StepKind(settings.lora.kind, settings.lora.layers, kind.precision)
    elif settings.is_embedding:
        kind = StepKind("embedding", "none", kind.precision)
    elif kind.precision == "mixed" and _trains_streamed(settings):
        # Autocast caches half-precision copies of weights that stay, but none of streamed ones.
        kind = StepKind("full", "all", "bf16")
    size = StepSize(model, family, batch, pixels, model.lora_rank(settings.lora) if settings.is_lora else 0)
    from_first_block = model.kept_share(settings)

    def moments(how: str) -> Moments:
        held = from_first_block + _HELD_BEFORE[how] * (1 - from_first_block)
        return [(share, held * activations) for share, activations in footprint_table.step_moments(kind, how, size)]

    if not settings.batching.gradient_checkpointing:
        return moments("whole")
    checkpointed, part = moments("checkpointed"), settings.memory.checkpointed_share
    if part == 1:
        return checkpointed
    whole = moments("whole")
    return [(share, part * less + (1 - part) * more) for (share, more), (_, less) in zip(whole, checkpointed)]


def _text_bytes(settings: Settings, model: Anatomy, family: str, batch: int) -> float:
    """The activations of text encoders that are trained, or that train a word's embedding."""
    if not settings.text_learns:
        return 0.0
    method = "full" if settings.is_full else "lora" if settings.tuning.text_encoder_learns else "embedding"
    how = "checkpointed" if settings.batching.gradient_checkpointing else "whole"
    prompts = batch * settings.tuning.max_token_length / PROMPT_TOKENS
    return model.read_share(settings) * footprint_table.text_encoder_bytes(
        family, f"{method}/{_precision(settings)}/{how}", prompts
    )


def encoding_bytes(area: int) -> int:
    """What encoding images of so many pixels holds beside the VAE's weights."""
    return footprint_table.vae_bytes("encode", area) * pictures_at_once(area)


def _preview_bytes(settings: Settings, model: Anatomy, family: str, area: int) -> int:
    """What drawing previews holds beside the model and the adapters."""
    previews = settings.previews
    if not previews.count:
        return 0
    precisions = {"no": "no", "bf16": "half/autocast", "mixed": "mixed" if settings.is_full else "half/autocast"}
    drawing = Drawing(
        model,
        family,
        precisions[_precision(settings)],
        preview_area(settings, area),
        previews.guidance_scale > 1,
        settings.memory.vae_decoding,
        _fetched_bytes(settings, model),
        _autocast_bytes(settings, model),
    )
    prompts = previews.prompts.count(";") + 1 if previews.prompts.strip() else 2 * len(settings.concepts)
    return drawing.bytes(min(previews.count * prompts, settings.batching.class_batch_size or 1))


def preview_area(settings: Settings, area: int) -> int:
    """The pixels of each preview; 0 where none is drawn. A side that is not set is that of the training images."""
    previews, side = settings.previews, round(area**0.5)
    return (previews.width or side) * (previews.height or side) if previews.count else 0


def _autocast_bytes(settings: Settings, model: Anatomy) -> int:
    """The half-precision copies that autocast caches of the UNet's weights, where these are trained in float32."""
    if not (settings.is_full and settings.tuning.train_unet) or _precision(settings) != "mixed":
        return 0
    return 2 * (model.alone.get(settings.tuning.unet_layers, model.unet) - _trained_in_ram(settings, model))


def _class_picture_bytes(settings: Settings, model: Anatomy, family: str, area: int) -> int:
    """What drawing class images holds beside the model, before training. Where the free memory decides how many are
    drawn at a time, they are counted as one."""
    concepts = [concept for concept in settings.concepts if _draws_class_pictures(concept)]
    if not concepts:
        return 0
    precision = _precision(settings)
    if precision == "bf16" or (precision == "mixed" and not settings.is_full):
        precision = "half"
    guided = any(concept.class_guidance_scale > 1 for concept in concepts)
    fetched, decoding = _fetched_bytes(settings, model), settings.memory.vae_decoding
    drawing = Drawing(model, family, precision, area, guided, decoding, fetched)
    return drawing.bytes(settings.batching.class_batch_size or 1)


def _fetched_bytes(settings: Settings, model: Anatomy) -> int:
    """The copies of a block's weights that are there for its turn, where the UNet is streamed or quantized."""
    kept_as = settings.memory.unet_weights
    if kept_as == "whole":
        return 0
    # Beside the block itself: from int8 its values in float32, streamed the next block; and the middle block.
    own = _base_value_bytes(settings)
    with_next = own + {"int8": 4, "streamed": own}.get(kept_as, 0)
    return int(model.largest_block * (with_next + own * _ONE_WEIGHT))


def _has_class_pictures(settings: Settings) -> bool:
    return any(
        concept.class_mode in ("folder", "prediction") or _draws_class_pictures(concept)
        for concept in settings.concepts
    )


def _draws_class_pictures(concept: Concept) -> bool:
    return concept.class_mode == "fill" and concept.num_class_images_per > 0
