"""What a training step holds beside what is persistent, in bytes: gradients, activations and the optimizer's update."""

from __future__ import annotations

from dreambooth.core.memory import footprint_table, weights_memory
from dreambooth.core.memory.footprint_table import Moments, StepKind, StepSize
from dreambooth.core.models.anatomy import Anatomy
from dreambooth.core.models.families import LATENT_FACTOR, PROMPT_TOKENS
from dreambooth.core.settings import Settings

_SLICED = 2  # times the activations of a step with sliced attention, whose slices are kept for the backward pass
# Of the activations before a LoRA's first block this share is held all the same: the skip connections; and with
# gradient checkpointing also the largest block while it is computed again. The most that was counted on SD 1 and SDXL.
_HELD_BEFORE = {"whole": 0.06, "checkpointed": 0.5}
_ROUNDING_BYTES = 2 * 4 * 2**25  # weights and gradients in float32 while their update is rounded to bf16
_UPDATE_BYTES = 13  # of each value of a bf16 weight while it is updated: itself, gradient and update in float32


def peak_bytes(settings: Settings, model: Anatomy, family: str, area: int, gradients: int) -> int:
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
            rounding = max(rounding, int(model.largest_block * weights_memory.ONE_WEIGHT * _UPDATE_BYTES) - gradients)
        held += rounding
    if settings.optimizer.name == "adamw_schedule_free":  # works on all weights at once
        held += 4 * model.trained(settings)
    return held


def _moments(settings: Settings, model: Anatomy, family: str, batch: int, pixels: int) -> Moments:
    """The activations of the UNet at each moment of a step; `pixels` are those of a latent."""
    kind = _step_kind(settings)
    size = StepSize(model, family, batch, pixels, model.lora_rank(settings.lora) if settings.is_lora else 0)
    kept_share = model.kept_share(settings)

    def moments(checkpointing: str) -> Moments:
        held = kept_share + _HELD_BEFORE[checkpointing] * (1 - kept_share)
        measured = footprint_table.step_moments(kind, checkpointing, size)
        return [(share, held * activations) for share, activations in measured]

    if not settings.batching.gradient_checkpointing:
        return moments("whole")
    checkpointed, checkpointed_share = moments("checkpointed"), settings.memory.checkpointed_share
    if checkpointed_share == 1:
        return checkpointed
    whole = moments("whole")
    return [
        (share, checkpointed_share * less + (1 - checkpointed_share) * more)
        for (share, more), (_, less) in zip(whole, checkpointed)
    ]


def _step_kind(settings: Settings) -> StepKind:
    """Which of the measured kinds of steps a step is."""
    precision = weights_memory.precision(settings)
    if settings.is_lora:
        return StepKind(settings.lora.kind, settings.lora.layers, precision)
    if settings.is_embedding:
        return StepKind("embedding", "none", precision)
    if precision == "mixed" and weights_memory.trains_streamed(settings):
        # Autocast caches half-precision copies of weights that stay, but none of streamed ones.
        return StepKind("full", "all", "bf16")
    return StepKind("full", "all", precision)


def _text_bytes(settings: Settings, model: Anatomy, family: str, batch: int) -> float:
    """The activations of text encoders that are trained, or that train a word's embedding."""
    if not settings.text_learns:
        return 0.0
    method = "full" if settings.is_full else "lora" if settings.tuning.text_encoder_learns else "embedding"
    checkpointing = "checkpointed" if settings.batching.gradient_checkpointing else "whole"
    prompts = batch * settings.tuning.max_token_length / PROMPT_TOKENS
    return model.read_share(settings) * footprint_table.text_encoder_bytes(
        family, f"{method}/{weights_memory.precision(settings)}/{checkpointing}", prompts
    )


def _has_class_pictures(settings: Settings) -> bool:
    return any(
        concept.class_mode in ("folder", "prediction") or concept.draws_class_images for concept in settings.concepts
    )
