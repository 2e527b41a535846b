"""Which device and which precision a run uses."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from dreambooth.core.errors import UserError


def accelerator(mixed_precision: str) -> Accelerator:
    """The device's accelerator in the wanted precision. Raises UserError where the device cannot do it."""
    choice = _automatic() if mixed_precision == "auto" else mixed_precision
    if choice == "fp16" and not torch.cuda.is_available():
        raise UserError("tuning.mixed_precision: fp16 needs a GPU; choose auto, no or bf16.")
    if choice == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise UserError("tuning.mixed_precision: this GPU cannot do bf16; choose auto or fp16.")
    return Accelerator(mixed_precision=choice)


def compute_dtype(accelerator: Accelerator) -> torch.dtype:
    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision, torch.float32)


def _automatic() -> str:
    if not torch.cuda.is_available():
        return "no"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
