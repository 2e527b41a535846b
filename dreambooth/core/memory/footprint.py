"""How much memory of a card training takes: what is kept, and what a step holds (see footprint_table.py).

At each moment of a step some of the gradients are there; the most of both together is what it takes. What is not
counted but taken from others' figures is `DRIVER_BYTES`, and what headroom.py leaves to others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dreambooth.core.memory import footprint_table
from dreambooth.core.memory.drawing_memory import Drawing
from dreambooth.core.memory.footprint_table import FAMILIES, LATENT, OWN_RESOLUTION, Kind, Moments, Size, full_size
from dreambooth.core.models.anatomy import Anatomy
from dreambooth.core.settings import Settings
from dreambooth.core.settings.dataset import Concept

__all__ = ["FAMILIES", "OWN_RESOLUTION", "Memory", "full_size", "needs"]

# CUDA's context with kernels loaded as they are used: 287 MB (pytorch/pytorch#86509) to 400 MB (#109888), and cuDNN's
# and cuBLAS's workspaces.
DRIVER_BYTES = 500_000_000
OPTIMIZER_BYTES = {  # kept for each trained value
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
PIXELS_AT_ONCE = 2**18  # of pictures that are encoded together
TEXTS_ON_DEVICE = 2**28  # bytes of texts that were read once; more stay in the computer's own memory
LATENTS_ON_DEVICE = 2**30  # bytes of latents; the same
_SLICED = 2  # times what a step holds with sliced attention: it keeps its pieces for the way back
_PROMPT_TOKENS = 77  # that each 75 of a prompt are read as, with their marks
GRADIENTS_AT_ONCE = 2**25  # bytes of gradients that are applied together in the backward pass
_RESTING_BYTES = {"int8": 1.0, "nf4": 0.5 + 4 / 64}  # of each value; the scales of 8 bits are few
# Of what is before a LoRA's first block so much is held all the same: what goes over to the way up; and checkpointed
# also the largest block while it is worked out again. The most that was counted on SD 1 and SDXL.
_HELD_BEFORE = {"whole": 0.06, "checkpointed": 0.5}
_ONE_WEIGHT = 0.6  # the largest weight's share of the largest block, and the middle block's, which has no checkpoint
_ROUNDING_BYTES = 2 * 4 * 2**25  # weights and gradients in full precision while their change is rounded to bf16
_CHANGE_BYTES = 13  # of each value of a weight in bf16: itself, gradient and update in full precision


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
    settings: Settings, model: Anatomy, family: str, area: int, *, to_draw: bool = True, known: int = 0
) -> Memory:
    """About how much memory training takes; `area` is the pixels of the largest bucket in use. `to_draw` says whether
    class pictures that are asked for are still to be drawn, as all may be there; `known` is what latents and texts take
    on the device, where that is known.

    Encoding pictures is not among it: where there is no room for that the UNet comes to the device only later, or the
    computer does it (see engine/run/dataset.py).
    """
    trained = model.trained(settings)
    weights = _on_device(settings, model) + (0 if settings.is_full else trained * _own_bytes(settings))
    resident = trained - _lent(settings, model)
    optimizer = int(resident * optimizer_bytes(settings))
    averages = resident * 4 * settings.tuning.use_ema
    held = _gradients(settings, model)
    lasting = weights + optimizer + averages + known
    peak = passing_bytes(settings, model, family, area)
    graphs = peak * settings.tuning.cuda_graphs  # whose room nothing else can use
    drawing = _previews(settings, model, family, area)
    before = _on_device(settings, model) + to_draw * _class_pictures(settings, model, family, area)
    activations = max(lasting + graphs + max(peak, drawing), before) - lasting - held
    return Memory(weights, held, optimizer, averages, max(0, activations), DRIVER_BYTES + known)


def training_bytes(settings: Settings, model: Anatomy, family: str, area: int) -> int:
    """The same of the steps alone, without what is drawn before and between them."""
    silent = replace(settings, previews=replace(settings.previews, count=0))
    return needs(silent, model, family, area, to_draw=False).total


def known_bytes(settings: Settings, model: Anatomy, texts: int, latents: int) -> int:
    """What lies on the device of so many texts that were read, and of so many bytes of latents."""
    pieces = settings.tuning.max_token_length // 75
    read = 0 if settings.text_learns else 4 * model.word * _PROMPT_TOKENS * pieces * texts
    return sum(size if size <= most else 0 for size, most in ((read, TEXTS_ON_DEVICE), (latents, LATENTS_ON_DEVICE)))


def optimizer_bytes(settings: Settings) -> float:
    """What the optimizer keeps for each trained value."""
    name = settings.optimizer.name
    # A LoRA's matrices are as narrow as its rank: the long side alone is that share of all.
    of_sides = 4 * _ROWS_AND_COLUMNS.get(name, 0) / settings.lora.rank if settings.is_lora else 0
    mean = _MEAN_BYTES if name == "adafactor" and settings.optimizer.beta1 else 0
    return OPTIMIZER_BYTES[name] + of_sides + mean


def passing_bytes(settings: Settings, model: Anatomy, family: str, area: int) -> int:
    """The most that a step holds beside what always lies on the card: activations, gradients, what comes and goes."""
    peak = _step_peak(settings, model, family, area, _gradients(settings, model))
    if settings.memory.unet_weights == "whole":
        return peak
    own = _base_bytes(settings)
    if not _trains_streamed(settings):
        return peak + _fetched(settings, model)
    # The largest block has its weights, as the next one has, which are fetched ahead; and a second and third time its
    # largest one with gradient, states and change, in full precision where they are rounded to bf16; half of the
    # activations are still there.
    changed = 2 * own + optimizer_bytes(settings) + (12 if settings.memory.bf16_weights else 4)
    change = model.largest_block * (own + _ONE_WEIGHT * changed) + peak / 2
    return int(max(peak + model.largest_block * own * _ONE_WEIGHT, change)) + model.largest_block * own


def computer_bytes(settings: Settings, model: Anatomy) -> int:
    """How much of the computer's own memory streamed weights take there, with what belongs to trained ones."""
    if settings.memory.unet_weights != "streamed":
        return 0
    each = optimizer_bytes(settings) + 4 * settings.tuning.use_ema
    return int(model.blocks * _base_bytes(settings) + each * _lent(settings, model))


def family_needs(settings: Settings, family: str, resolution: int = 0) -> Memory:
    """The same for a model of full size of a family, from the settings alone; 0 takes the family's own resolution.

    Quick enough to be asked whenever a control moves.
    """
    side = resolution or settings.general.resolution or OWN_RESOLUTION[family]
    return needs(settings, full_size(family), family, side**2)


def pictures_at_once(area: int) -> int:
    """How many pictures of so many pixels are encoded together."""
    return max(1, min(8, PIXELS_AT_ONCE // area))


def _own_bytes(settings: Settings) -> int:
    """Bytes of each value that is trained, and of its gradient."""
    return 2 if settings.memory.bf16_weights else 4


def _precision(settings: Settings) -> str:
    if settings.memory.bf16_weights:
        return "bf16"
    return "no" if settings.tuning.mixed_precision == "no" else "mixed"


def _trains_streamed(settings: Settings) -> bool:
    """Whether weights are trained that lie in the computer's memory."""
    return settings.memory.unet_weights == "streamed" and settings.is_full and settings.tuning.train_unet


def _lent(settings: Settings, model: Anatomy) -> int:
    """How many trained values lie in the computer's memory, with what the optimizer keeps of them."""
    if not _trains_streamed(settings):
        return 0
    return min(model.blocks, model.alone.get(settings.tuning.unet_layers, model.unet))


def _on_device(settings: Settings, model: Anatomy) -> int:
    """The weights of the model that stay on the card: the UNet's, and those of text encoders that learn."""
    own = _base_bytes(settings)
    text = model.read_anew(settings) * own
    lying = settings.memory.unet_weights
    if lying == "whole":
        return model.unet * own + text
    return int((model.unet - model.blocks) * own + model.blocks * _RESTING_BYTES.get(lying, 0) + text)


def _gradients(settings: Settings, model: Anatomy) -> int:
    """The most gradients that are there at once beside those of streamed weights."""
    held = (model.trained(settings) - _lent(settings, model)) * _own_bytes(settings)
    return min(held, GRADIENTS_AT_ONCE) if settings.memory.step_in_backward else held


def _base_bytes(settings: Settings) -> int:
    """Bytes of each value of the model."""
    if settings.is_full:
        return _own_bytes(settings)
    return 2 if settings.tuning.mixed_precision != "no" else 4


def _step_peak(settings: Settings, model: Anatomy, family: str, area: int, gradients: int) -> int:
    """The most that a step holds at once beside weights, optimizer and average, its gradients among it."""
    batching = settings.batching
    batch = batching.train_batch_size * (2 if _has_class_pictures(settings) else 1)
    adds_up, sliced = batching.gradient_accumulation_steps > 1, settings.memory.attention == "sliced"
    always = 1 if adds_up or settings.memory.step_in_backward else 0
    # A traced step's gradients come beside those that they are added to; those of a graph are copied for that.
    again = adds_up and settings.tuning.trace_steps
    always += again and settings.tuning.cuda_graphs
    text = _text_bytes(settings, model, family, batch)
    peak = 0.0
    for share, bytes_ in _moments(settings, model, family, batch, area // LATENT**2):
        held = gradients * (always + (share if again or not always else 0))
        peak = max(peak, bytes_ * (_SLICED if sliced else 1) + text + held)
    rounding = _ROUNDING_BYTES
    if settings.memory.step_in_backward:
        rounding = max(rounding, int(model.largest_block * _ONE_WEIGHT * _CHANGE_BYTES) - gradients)
    at_the_change = gradients + rounding * settings.memory.bf16_weights
    if settings.optimizer.name == "adamw_schedule_free":  # which works on all weights at once
        at_the_change += 4 * model.trained(settings)
    return int(max(peak, at_the_change))


def _moments(settings: Settings, model: Anatomy, family: str, batch: int, pixels: int) -> Moments:
    """What each moment of a step of the UNet holds."""
    kind = Kind("full", "all", _precision(settings))
    if settings.is_lora:
        kind = Kind(settings.lora.kind, settings.lora.layers, kind.precision)
    elif settings.is_embedding:
        kind = Kind("embedding", "none", kind.precision)
    elif kind.precision == "mixed" and _trains_streamed(settings):
        # What autocast keeps of whole weights in full precision, it does not keep of copies that come and go.
        kind = Kind("full", "all", "bf16")
    size = Size(model, family, batch, pixels, model.lora_rank(settings.lora) if settings.is_lora else 0)
    from_first = model.kept_share(settings)

    def moments(end: str) -> Moments:
        held = from_first + _HELD_BEFORE[end] * (1 - from_first)
        return [(there, held * bytes_) for there, bytes_ in footprint_table.moments(kind, end, size)]

    if not settings.batching.gradient_checkpointing:
        return moments("whole")
    all_checkpointed, share = moments("checkpointed"), settings.memory.checkpointed_share
    if share == 1:
        return all_checkpointed
    whole = moments("whole")
    return [(there, share * again + (1 - share) * kept) for (there, kept), (_, again) in zip(whole, all_checkpointed)]


def _text_bytes(settings: Settings, model: Anatomy, family: str, batch: int) -> float:
    """What the text encoders hold while they learn."""
    if not settings.text_learns:
        return 0.0
    method = "full" if settings.is_full else "lora" if settings.tuning.text_encoder_learns else "embedding"
    end = "checkpointed" if settings.batching.gradient_checkpointing else "whole"
    prompts = batch * settings.tuning.max_token_length / 75
    return model.read_share(settings) * footprint_table.text(family, f"{method}/{_precision(settings)}/{end}", prompts)


def encoding_bytes(area: int) -> int:
    """What encoding pictures of so many pixels holds beside the VAE, before the first step."""
    return footprint_table.picture("encode", area) * pictures_at_once(area)


def _previews(settings: Settings, model: Anatomy, family: str, area: int) -> int:
    """What drawing previews holds beside the model and what is trained."""
    choice = settings.previews
    if not choice.count:
        return 0
    how = {"no": "no", "bf16": "half/autocast", "mixed": "mixed" if settings.is_full else "half/autocast"}
    drawn = Drawing(
        model,
        family,
        how[_precision(settings)],
        preview_area(settings, area),
        choice.guidance_scale > 1,
        settings.memory.vae_decoding,
        _fetched(settings, model),
        _kept_by_autocast(settings, model),
    )
    prompts = choice.prompts.count(";") + 1 if choice.prompts.strip() else 2 * len(settings.concepts)
    together = min(choice.count * prompts, settings.batching.class_batch_size or 1)
    return drawn.bytes(together)


def preview_area(settings: Settings, area: int) -> int:
    """The pixels of each preview; 0 where none is drawn. A side that is not set is the training pictures'."""
    choice, side = settings.previews, round(area**0.5)
    return (choice.width or side) * (choice.height or side) if choice.count else 0


def _kept_by_autocast(settings: Settings, model: Anatomy) -> int:
    """Each weight of the UNet that is trained in full precision is there in half precision too, once it was used."""
    if not (settings.is_full and settings.tuning.train_unet) or _precision(settings) != "mixed":
        return 0
    return 2 * (model.alone.get(settings.tuning.unet_layers, model.unet) - _lent(settings, model))


def _class_pictures(settings: Settings, model: Anatomy, family: str, area: int) -> int:
    """What drawing class pictures holds beside the model, before the training. As many as there is room for need no
    more than one does."""
    precision, wanted = _precision(settings), [c for c in settings.concepts if _is_drawn(c)]
    if not wanted:
        return 0
    half = precision == "bf16" or (precision == "mixed" and not settings.is_full)
    guided = any(concept.class_guidance_scale > 1 for concept in wanted)
    how, decoding = "half" if half else precision, settings.memory.vae_decoding
    drawn = Drawing(model, family, how, area, guided, decoding, _fetched(settings, model))
    return drawn.bytes(settings.batching.class_batch_size or 1)


def _fetched(settings: Settings, model: Anatomy) -> int:
    """The weights of a block that lie elsewhere or smaller, and are there for its turn."""
    if settings.memory.unet_weights == "whole":
        return 0
    # Where in full precision on their way from 8 bits, or the next one's that are fetched ahead; and the middle one's.
    own, lying = _base_bytes(settings), settings.memory.unet_weights
    whole = own + {"int8": 4, "streamed": own}.get(lying, 0)
    return int(model.largest_block * (whole + own * _ONE_WEIGHT))


def _has_class_pictures(settings: Settings) -> bool:
    return any(concept.class_mode in ("folder", "prediction") or _is_drawn(concept) for concept in settings.concepts)


def _is_drawn(concept: Concept) -> bool:
    return concept.class_mode == "fill" and concept.num_class_images_per > 0
