"""How the UNet works out attention: PyTorch's own (SDPA, which takes the device's quickest kernel, flash attention
where there is one), in slices, or with xformers where that works."""

from __future__ import annotations

from typing import Any

import torch

from dreambooth.core.errors import UserError

KINDS = ("sdpa", "sliced", "xformers")


def fault(name: str, device: torch.device) -> str:
    """Why a kind of attention does not work on this device, found by trying; empty if it does."""
    if name != "xformers":
        return ""
    try:
        from xformers.ops import memory_efficient_attention

        query = torch.randn(1, 16, 2, 8, device=device, requires_grad=True)
        memory_efficient_attention(query, query, query).sum().backward()
    except ModuleNotFoundError:
        return "the package is not installed in the engine's environment"
    except Exception as error:  # noqa: BLE001  (it fails in many ways where it was built for another PyTorch)
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
    return ""


def check(name: str, device: torch.device) -> None:
    """Raises UserError if this kind of attention does not work on this device."""
    if reason := fault(name, device):
        raise UserError(f"memory.attention: {name} does not work here ({reason}); choose sdpa or sliced.")


def use(unet: Any, name: str) -> None:
    """Sets the kind of attention of a UNet. SDPA is what it has from the start."""
    if name == "sliced":
        unet.set_attention_slice("max")
    elif name == "xformers":
        unet.enable_xformers_memory_efficient_attention()
