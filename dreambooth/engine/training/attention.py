"""How the UNet works out attention: PyTorch's own (SDPA, which takes the quickest kernel that the device has for each
layer), its flash attention and nothing else, in slices, or with xformers where that works."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from dreambooth.core.errors import UserError
from dreambooth.engine import hardware, out_of_memory
from dreambooth.engine.training.lean_attention import attended

KINDS = ("sdpa", "flash", "sliced", "xformers")


def fault(name: str, device: torch.device) -> str:
    """Why a kind of attention does not work on this device, found by trying; empty if it does."""
    if name == "flash" and device.type == "mps":
        return hardware.NEEDS_CARD  # PyTorch would take another kind there without a word
    half = torch.float32 if device.type == "cpu" else torch.float16
    try:
        query = torch.randn(1, 2, 16, 8, device=device, dtype=half, requires_grad=True)
        if name == "flash":
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                scaled_dot_product_attention(query, query, query).sum().backward()
        elif name == "xformers":
            from xformers.ops import memory_efficient_attention

            memory_efficient_attention(query, query, query).sum().backward()
    except ModuleNotFoundError:
        return "the package is not installed in the engine's environment"
    except Exception as error:  # noqa: BLE001  (it fails in many ways where it was built for another PyTorch)
        return out_of_memory.first_line(error)
    return ""


def check(name: str, device: torch.device, dtype: torch.dtype, family: str) -> None:
    """Raises UserError if this kind of attention does not work on this device, or in this precision with this family.

    SD 2.1's own configuration asks for full precision in attention. SDPA's kernels have that within; sliced attention
    hands its products on in what it is given.
    """
    if reason := fault(name, device):
        raise UserError(f"memory.attention: {name} does not work here ({reason}); choose sdpa or sliced.")
    if name == "flash" and not _has_flash(device, dtype):
        raise UserError(
            "tuning.mixed_precision: it is no, but memory.attention flash needs half precision; choose auto."
        )
    if (name, dtype, family) == ("sliced", torch.float16, "sd2"):
        raise UserError(
            "memory.attention: sliced has too little room in fp16 for what SD 2 multiplies; choose sdpa, or set "
            "tuning.mixed_precision to no."
        )


def use(unet: Any, name: str) -> None:
    """Sets the kind of attention of a UNet."""
    if name == "sdpa":
        unet.set_attn_processor(_Sdpa())
    elif name == "sliced":
        unet.set_attention_slice("max")
    elif name == "xformers":
        unet.enable_xformers_memory_efficient_attention()
    elif name == "flash":
        unet.set_attn_processor(_Flash())


class _Sdpa(AttnProcessor2_0):  # type: ignore[misc]
    """diffusers' processor without what a transformer block has no use for, such as a copy to divide by 1."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        plain = attn.group_norm is attn.spatial_norm is attn.norm_q is attn.norm_cross is None
        if not plain or attention_mask is not None or attn.residual_connection or attn.rescale_output_factor != 1:
            return super().__call__(  # type: ignore[no-any-return]
                attn, hidden_states, encoder_hidden_states, attention_mask, *args, **kwargs
            )
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        inputs = zip((attn.to_q, attn.to_k, attn.to_v), (hidden_states, context, context))
        query, key, value = (layer(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for layer, x in inputs)
        mixed = attended(query, key, value).transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](mixed))  # type: ignore[no-any-return]


class _Flash(_Sdpa):
    """Flash attention or an error. Previews in full precision, which it does not have on a GPU, take SDPA's choice."""

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if torch.is_autocast_enabled(hidden_states.device.type):
            dtype = torch.get_autocast_dtype(hidden_states.device.type)
        else:
            dtype = hidden_states.dtype
        if not _has_flash(hidden_states.device, dtype):
            return super().__call__(attn, hidden_states, *args, **kwargs)  # type: ignore[no-any-return]
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return super().__call__(attn, hidden_states, *args, **kwargs)  # type: ignore[no-any-return]


def _has_flash(device: torch.device, dtype: torch.dtype) -> bool:
    return device.type == "cpu" or dtype in (torch.float16, torch.bfloat16)
