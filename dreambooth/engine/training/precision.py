"""Which device and which precision a run uses, and whether it repeats bit for bit."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator

from dreambooth.core.errors import UserError
from dreambooth.core.settings import Settings
from dreambooth.engine import hardware


def accelerator(mixed_precision: str = "auto", *, bf16_weights: bool = False) -> Accelerator:
    """The device's accelerator in the wanted precision. Raises UserError where the device cannot do it."""
    device = hardware.here()
    choice = automatic(device) if mixed_precision == "auto" else mixed_precision
    if bf16_weights:
        choice = "bf16"
    if choice == "fp16" and device.type != "cuda":
        raise UserError(f"tuning.mixed_precision: for fp16 {hardware.NEEDS_CARD}; choose auto, no or bf16.")
    if choice == "bf16" and not hardware.does_bf16(device):
        other = "fp16" if device.type == "cuda" else "no"
        key, mend = (
            ("memory.bf16_weights", "turn it off")
            if bf16_weights
            else ("tuning.mixed_precision", f"choose auto or {other}")
        )
        raise UserError(f"{key}: this GPU cannot do bf16; {mend}.")
    if device.type == "cuda":
        hardware.pin_exactly()
        hardware.refuse_more_than_is_free(device)
    return Accelerator(mixed_precision=choice)


def bf16_fault(device: torch.device) -> str:
    """Why it is not worth computing in bf16 on this device; empty if it is."""
    if hardware.is_quick_in_bf16(device):
        return ""
    if not hardware.does_bf16(device):
        return "this GPU cannot do bf16"
    return "this GPU only emulates bf16, and attention then takes gigabytes more than is reckoned with"


def fp16_fault(device: torch.device) -> str:
    """Why not to compute in fp16 on this device; empty if nothing is known against it."""
    return (
        "convolutions in fp16 are known to give no numbers (NaN) on this GPU" if hardware.breaks_in_fp16(device) else ""
    )


def of(settings: Settings) -> Accelerator:
    """The accelerator that these settings ask for. Raises UserError where the device cannot do it."""
    made = accelerator(settings.tuning.mixed_precision, bf16_weights=settings.memory.bf16_weights)
    if made.scaler and settings.memory.step_in_backward:
        raise UserError(
            "memory.step_in_backward: this GPU would train in fp16, which must see all gradients before any "
            "is applied; turn it off, or set tuning.mixed_precision to no."
        )
    return made


def to_draw_in(settings: Settings) -> str:
    """Which mixed precision to draw a run's results in: what this device is good at, unless the run had none, as half
    precision may not be enough for a model."""
    return "no" if settings.tuning.mixed_precision == "no" else "auto"


def compute_dtype(accelerator: Accelerator) -> torch.dtype:
    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision, torch.float32)


def weights_dtype(accelerator: Accelerator, settings: Settings) -> torch.dtype:
    """How the UNet and the text encoders are held: half of a model that rests; whole of what is trained."""
    if not settings.is_full:
        return compute_dtype(accelerator)
    return torch.bfloat16 if settings.memory.bf16_weights else torch.float32


def plain_dtype(accelerator: Accelerator, settings: Settings) -> torch.dtype | None:
    """The one precision that the UNet of a run computes in by itself; None where it needs autocast."""
    computed, held = compute_dtype(accelerator), weights_dtype(accelerator, settings)
    return computed if is_plain(computed, held, settings.memory.attention) else None


def is_plain(computed: torch.dtype, held: torch.dtype, attention: str = "sdpa") -> bool:
    """Whether a model computes in one precision by itself, as all of it that rests is held in that; else autocast must
    choose for each operation.

    The sums inside norms and attention are done in full precision either way; autocast would also widen what goes into
    and comes out of norms, for nothing, as the next layer narrows it again. The softmax of sliced attention is done in
    what it is given.
    """
    if computed == torch.float32:
        return held == computed
    return computed == held and attention != "sliced"


def set_deterministic(on: bool) -> None:
    """Whether only computations that repeat bit for bit are allowed; torch refuses the others."""
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the GPU is first used
    if on != torch.are_deterministic_algorithms_enabled():  # to say so imports the compiler
        torch.use_deterministic_algorithms(on)
    torch.backends.cudnn.benchmark = False


def automatic(device: torch.device) -> str:
    """Which mixed precision is chosen where nobody has: the safest that the device is quick at.

    An Apple GPU is hardly quicker in half precision, but its memory is short (karpathy/nanochat issue 793).
    """
    if device.type == "cpu":
        return "no"
    if hardware.is_quick_in_bf16(device):
        return "bf16"
    return "fp16" if device.type == "cuda" and not fp16_fault(device) else "no"
