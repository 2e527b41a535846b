"""How a UNet's large weights are stored between two uses: quantized, or in the computer's memory.

In `int8` each row of a weight is stored in 8 bits with its own scale (round to nearest, by the row's greatest value, as
in Dettmers et al. 2022, arXiv 2208.07339, section 2.1, without its outliers); in `nf4` every 64 values are stored in 4
bits with their own scale (Dettmers et al. 2023, arXiv 2305.14314, without its double quantization; bitsandbytes does
it); `streamed` weights are offloaded to the computer's memory. A block of the UNet, one transformer block or one
residual block, has its weights restored in the precision of the computation while it runs. With gradient checkpointing
nothing of a block outlives that, so that the device holds the weights of one block at a time, and those of the next one
where a GPU prefetches streamed ones (see weight_prefetch.py).

Streamed weights may be trained: a block then computes with a copy, whose gradient goes to the weight's `on_gradient`
(see training/fused_backward.py), as in ZeRO-Infinity (Rajbhandari et al. 2021, arXiv 2104.07857).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from dreambooth.core.errors import Problem, UserError
from dreambooth.engine import hardware, out_of_memory
from dreambooth.engine.families import weight_prefetch
from dreambooth.engine.families.weight_prefetch import Prefetcher, Streams
from dreambooth.engine.process import probe

MIN_VALUES = 4096  # of a weight that is stored in another way; smaller ones save too little
NF4_BLOCK = 64  # values that share a scale
BLOCKS = (BasicTransformerBlock, ResnetBlock2D)


class StoredWeight(Protocol):
    """A layer's weight between two uses."""

    def restore(self, device: torch.device) -> Tensor:
        """The weight on the device, in its shape and dtype before it was stored."""


class StreamedWeight:
    """A weight in the computer's memory, pinned where possible, so that a GPU can copy it without the CPU.

    `on_gradient` is called with each gradient of a trained one, which is on the device that the copy was on.
    """

    def __init__(self, weight: Tensor, device: torch.device) -> None:
        if device.type == "cuda":
            plain = weight
            weight = hardware.in_reach(lambda pinned: plain.pin_memory() if pinned else plain)
        self.offloaded = nn.Parameter(weight, requires_grad=False)
        self.prefetched: Tensor | None = None  # a copy for the next use
        self.on_gradient: Callable[[Tensor], None] = lambda gradient: None

    def restore(self, device: torch.device) -> Tensor:
        fetched: Tensor = _Fetch.apply(self.offloaded, self, device)
        return fetched


class _Fetch(torch.autograd.Function):
    """A streamed weight -> its copy on the device, whose gradient is handed over there and not copied back."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, streamed: StreamedWeight, device: torch.device) -> Tensor:
        ctx.streamed = streamed
        prefetched, streamed.prefetched = streamed.prefetched, None
        if prefetched is not None and prefetched.device == device:
            return prefetched
        return hardware.brought(weight, device, copy=True)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:
        ctx.streamed.on_gradient(gradient)
        return None, None, None


class Int8Weight:
    """A weight in 8 bits, in buffers of its layer, so that it moves with the layer."""

    def __init__(self, weight: Tensor, device: torch.device, layer: nn.Module) -> None:
        self.layer, self.dtype, self.shape = layer, weight.dtype, weight.shape
        rows = weight.to(device).float().flatten(1)
        scale = rows.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
        layer.register_buffer("quantized_weight", (rows / scale).round().to(torch.int8), persistent=False)
        layer.register_buffer("quantization_scale", scale, persistent=False)

    def restore(self, device: torch.device) -> Tensor:
        values, scale = self.layer.quantized_weight, self.layer.quantization_scale
        if values.is_cuda:  # in one operation, which reads 8 bits and writes no float32 in between
            restored = torch.empty(values.shape, dtype=self.dtype, device=values.device)
            return torch.mul(values, scale, out=restored).reshape(self.shape)
        return (values.float() * scale).to(self.dtype).reshape(self.shape)


class NF4Weight:
    """A weight in 4 bits, in buffers of its layer, so that it moves with the layer."""

    def __init__(self, weight: Tensor, device: torch.device, layer: nn.Module) -> None:
        from bitsandbytes import functional  # heavy: only where it is asked for

        self.functional = functional
        self.layer, self.dtype, self.shape = layer, weight.dtype, weight.shape
        flat = weight.to(device).flatten()  # bitsandbytes' CPU kernel takes only rows of whole blocks
        packed, state = functional.quantize_4bit(flat, blocksize=NF4_BLOCK, quant_type="nf4")
        layer.register_buffer("quantized_weight", packed, persistent=False)
        layer.register_buffer("quantization_scale", state.absmax, persistent=False)

    def restore(self, device: torch.device) -> Tensor:
        values, scale = self.layer.quantized_weight, self.layer.quantization_scale
        flat = torch.Size((self.shape.numel(),))
        state = self.functional.QuantState(scale, flat, blocksize=NF4_BLOCK, quant_type="nf4", dtype=self.dtype)
        restored: Tensor = self.functional.dequantize_4bit(values, state)
        return restored.reshape(self.shape)


def check(kind: str, device: torch.device) -> None:
    """Raises UserError if the UNet's weights cannot be stored in this way on this device."""
    if reason := fault(kind, device):
        raise UserError(f"memory.unet_weights: {kind} does not work here ({reason}); choose int8 or another.")


def fault(kind: str, device: torch.device) -> str:
    """Why weights cannot be stored in this way on this device; empty if they can."""
    return probe.fault(("memory.unet_weights", kind), device, lambda: try_here(kind, device)) if kind == "nf4" else ""


def try_here(kind: str, device: torch.device) -> str:
    """Why storing a small weight in 4 bits fails in this process; empty if it works."""
    weight = torch.linspace(-1, 1, 64 * 128).reshape(64, 128)
    try:
        restored = NF4Weight(weight, device, nn.Linear(1, 1)).restore(device).cpu()
    except Exception as error:  # noqa: BLE001  (whatever it is, this is not for here)
        return out_of_memory.first_line(error)
    return "" if (restored - weight).abs().max() < 0.2 else "its values do not come back"


def store_weights(
    unet: nn.Module,
    kind: str,
    device: torch.device,
    tell: Callable[[Problem], None] = lambda problem: None,
    by: Streams | None = None,
) -> None:
    """Stores the large weights of each block in the way that `kind` names, before anything of the UNet is trained.

    Streamed ones are prefetched with the streams `by`, or the device's own; `tell` hears where that goes wrong.
    """
    streams, prefetcher = by or weight_prefetch.streams(device), None
    if kind == "streamed" and streams:
        prefetcher = Prefetcher(streams, device, tell)
        unet.register_forward_pre_hook(lambda *_: prefetcher.start_pass())
    for block in unet.modules():
        if kind != "whole" and isinstance(block, BLOCKS):
            _store_block(block, kind, device, prefetcher)
    if kind == "streamed" and device.type == "cuda" and not hardware.pins():
        message = (
            "memory.unet_weights: too little of the computer's memory (RAM) can be pinned for a card to fetch from; it "
            "waits for what is not."
        )
        tell(Problem(message, "memory.unet_weights", "Close other programs."))


def has_stored_weights(unet: nn.Module) -> bool:
    """Whether any of its weights are quantized or streamed."""
    return any(hasattr(layer, "stored_weight") for layer in unet.modules())


def named_weights(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Like `named_parameters`, with the offloaded parameter in the place of each streamed weight."""
    offloaded = {f"{path}.weight": stored.offloaded for path, stored in streamed(module)}
    for name, weight in module.named_parameters():
        yield name, offloaded.get(name, weight)


def streamed(module: nn.Module) -> Iterator[tuple[str, StreamedWeight]]:
    """The streamed weights of a module, by the path of their layer."""
    for path, layer in module.named_modules():
        if isinstance(stored := getattr(layer, "stored_weight", None), StreamedWeight):
            yield path, stored


def _store_block(block: nn.Module, kind: str, device: torch.device, prefetcher: Prefetcher | None) -> None:
    """Stores a block's large weights, and has them restored before its forward and released after it."""
    stored: list[tuple[nn.Module, StoredWeight]] = []
    for layer, weight in large_weights(block):
        layer.stored_weight = _stored(kind, layer, weight.data, device)  # type: ignore[assignment]
        stored.append((layer, layer.stored_weight))  # type: ignore[arg-type]
    _release(stored)
    streamed_weights = [weight for _, weight in stored if isinstance(weight, StreamedWeight)]
    if prefetcher:
        prefetcher.blocks[block] = [weight.offloaded for weight in streamed_weights]

    def restore(module: nn.Module, inputs: Any) -> None:
        place = next(tensor.device for tensor in inputs if isinstance(tensor, Tensor))
        if prefetcher and (copies := prefetcher.before_block(block)):
            for weight, copy in zip(streamed_weights, copies):
                weight.prefetched = copy
        for layer, weight in stored:
            layer._parameters["weight"] = weight.restore(place)  # type: ignore[assignment]

    block.register_forward_pre_hook(restore)
    block.register_forward_hook(lambda *_: _release(stored), always_call=True)


def _stored(kind: str, layer: nn.Module, weight: Tensor, device: torch.device) -> StoredWeight:
    if kind == "streamed":
        return StreamedWeight(weight, device)
    return (Int8Weight if kind == "int8" else NF4Weight)(weight, device, layer)


def _release(stored: list[tuple[nn.Module, StoredWeight]]) -> None:
    """Puts empty weights in the place of the restored ones, of as many dimensions, by which peft tells layers apart."""
    for layer, _ in stored:
        weight = layer._parameters["weight"]
        if weight is not None and weight.numel():
            layer._parameters["weight"] = nn.Parameter(weight.new_empty(0, *weight.shape[1:]), requires_grad=False)


def large_weights(block: nn.Module) -> Iterator[tuple[nn.Module, Tensor]]:
    """The linear and convolution layers of a block whose weight, as it is now, has at least `MIN_VALUES` values."""
    for layer in block.modules():
        weight = layer._parameters.get("weight")
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and weight is not None and weight.numel() >= MIN_VALUES:
            yield layer, weight
