"""How much GPU memory training takes.

    total = DRIVER_BYTES + max(base model + class images, persistent + max(training step, previews))
    persistent = base model + adapters + optimizer + EMA weights + cached latents and text embeddings

Class images are drawn before adapters, optimizer and EMA weights are there, previews between training steps. A step
holds gradients and activations (step_memory.py): footprint_table.py has what both take at each moment of it, and the
most of both together counts. With CUDA graphs that is persistent, too. What weights take is in weights_memory.py.
DRIVER_BYTES and what headroom.py leaves free are not counted but taken from figures of others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dreambooth.core.memory import footprint_table, step_memory, weights_memory
from dreambooth.core.memory.drawing_memory import Drawing
from dreambooth.core.models.anatomy import Anatomy
from dreambooth.core.models.families import CHUNK_TOKENS, PROMPT_TOKENS
from dreambooth.core.settings import Settings

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
GRADIENTS_AT_ONCE = 2**25  # bytes of gradients that are applied together in the backward pass


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
    trained_on_device = trained - weights_memory.trained_in_ram(settings, model)
    base = weights_memory.base_on_device(settings, model)
    adapters = 0 if settings.is_full else trained * weights_memory.trained_value_bytes(settings)
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
    peak = step_memory.peak_bytes(settings, model, family, area, _gradient_bytes(settings, model))
    if settings.memory.unet_weights == "whole":
        return peak
    if not weights_memory.trains_streamed(settings):
        return peak + weights_memory.fetched_bytes(settings, model)
    # There are the weights of the current block and of the next one, which is fetched ahead. While the current block's
    # largest weight is updated, there are its gradient, optimizer state and update too, in float32 where they are
    # rounded to bf16, and half of the activations.
    own = weights_memory.base_value_bytes(settings)
    updated = 2 * own + optimizer_bytes(settings) + (12 if settings.memory.bf16_weights else 4)
    update = model.largest_block * (own + weights_memory.ONE_WEIGHT * updated) + peak / 2
    return int(max(peak + model.largest_block * own * weights_memory.ONE_WEIGHT, update)) + model.largest_block * own


def computer_bytes(settings: Settings, model: Anatomy) -> int:
    """How much of the computer's own memory streamed weights take, with the optimizer state and EMA weights of trained
    ones."""
    if settings.memory.unet_weights != "streamed":
        return 0
    state = optimizer_bytes(settings) + (4 if settings.tuning.use_ema else 0)
    return int(
        model.blocks * weights_memory.base_value_bytes(settings)
        + state * weights_memory.trained_in_ram(settings, model)
    )


def pictures_at_once(area: int) -> int:
    """How many images of so many pixels are encoded together."""
    return max(1, min(8, PIXELS_AT_ONCE // area))


def _gradient_bytes(settings: Settings, model: Anatomy) -> int:
    """The most gradients that are there at once, without those of streamed weights."""
    gradients = (
        model.trained(settings) - weights_memory.trained_in_ram(settings, model)
    ) * weights_memory.trained_value_bytes(settings)
    return min(gradients, GRADIENTS_AT_ONCE) if settings.memory.step_in_backward else gradients


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
        precisions[weights_memory.precision(settings)],
        preview_area(settings, area),
        previews.guidance_scale > 1,
        settings.memory.vae_decoding,
        weights_memory.fetched_bytes(settings, model),
        weights_memory.autocast_bytes(settings, model),
    )
    prompts = previews.prompts.count(";") + 1 if previews.prompts.strip() else 2 * len(settings.concepts)
    return drawing.bytes(min(previews.count * prompts, settings.batching.class_batch_size or 1))


def preview_area(settings: Settings, area: int) -> int:
    """The pixels of each preview; 0 where none is drawn. A side that is not set is that of the training images."""
    previews, side = settings.previews, round(area**0.5)
    return (previews.width or side) * (previews.height or side) if previews.count else 0


def _class_picture_bytes(settings: Settings, model: Anatomy, family: str, area: int) -> int:
    """What drawing class images holds beside the model, before training. Where the free memory decides how many are
    drawn at a time, they are counted as one."""
    concepts = [concept for concept in settings.concepts if concept.draws_class_images]
    if not concepts:
        return 0
    precision = weights_memory.precision(settings)
    if precision == "bf16" or (precision == "mixed" and not settings.is_full):
        precision = "half"
    guided = any(concept.class_guidance_scale > 1 for concept in concepts)
    fetched, decoding = weights_memory.fetched_bytes(settings, model), settings.memory.vae_decoding
    drawing = Drawing(model, family, precision, area, guided, decoding, fetched)
    return drawing.bytes(settings.batching.class_batch_size or 1)
