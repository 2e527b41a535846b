"""Shows that the engine's environment works: its imports, a matrix product and a small UNet step on the device."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import accelerate  # noqa: F401  (that it imports is part of the check)
import peft  # noqa: F401
import torch
from diffusers import UNet2DConditionModel

from dreambooth.core.engine_capabilities import FAULTS
from dreambooth.engine import hardware
from dreambooth.engine.families import unet_weights
from dreambooth.engine.process import probe
from dreambooth.engine.prompts.vocabulary import clip_tokenizer
from dreambooth.engine.training import attention, optimizers, precision

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "pillow", "numpy")


def report() -> dict[str, Any]:
    """Runs the check. Returns the Python, the packages' versions and the device; raises whatever goes wrong."""
    device = hardware.here()
    product = torch.ones(64, 64, device=device) @ torch.ones(64, 64, device=device)
    assert product.sum().item() == 64**3
    unet = UNet2DConditionModel(
        block_out_channels=(32, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=4,
    ).to(device)
    loss = unet(torch.randn(1, 4, 8, 8, device=device), 1, torch.randn(1, 77, 32, device=device)).sample.square().mean()
    loss.backward()
    assert torch.isfinite(loss).item()
    assert clip_tokenizer()("a photo of an astronaut riding a horse").input_ids[1:4] == [320, 1125, 539]
    return {
        "python": sys.executable,
        "python_version": platform.python_version(),
        "torch": version("torch"),
        "device": device.type,
        "device_name": hardware.name(device),
        "memory_bytes": hardware.memory_bytes(device),
        "packages": {name: version(name) for name in PACKAGES},
        FAULTS: _faults(device),
    }


def tell(device: torch.device, choices: Sequence[str]) -> None:
    """Tries choices, such as `optimizer.name=adamw_8bit`, and prints of each in turn why it does not work, as JSON."""
    torch.ones(1, device=device).sum().item()
    print(probe.REACHED, flush=True)
    for key, _, choice in (one.partition("=") for one in choices):
        tried = optimizers.try_here if key == "optimizer.name" else unet_weights.try_here
        print(json.dumps(tried(choice, device)), flush=True)  # at once: the next one may end this process


def _faults(device: torch.device) -> dict[str, dict[str, str]]:
    """What does not work here, of the settings whose choices hang on packages and devices: choice and reason."""
    if device.type == "cuda":
        probe.ask(
            [*(("optimizer.name", name) for name in optimizers.BY_BITSANDBYTES), ("memory.unet_weights", "nf4")], device
        )
    found = {
        "optimizer.name": {name: optimizers.fault(name, device) for name in optimizers.RECIPES},
        "memory.attention": {name: attention.fault(name, device) for name in attention.KINDS},
        "memory.bf16_weights": {"on": precision.bf16_fault(device)},
        "tuning.mixed_precision": {"fp16": precision.fp16_fault(device)},
        "memory.unet_weights": {"nf4": unet_weights.fault("nf4", device)},
    }
    return {key: {name: reason for name, reason in some.items() if reason} for key, some in found.items()}
