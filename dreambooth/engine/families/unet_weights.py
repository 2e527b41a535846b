"""How a UNet's weights lie between two uses: smaller, or elsewhere.

In `int8` each row of a large weight lies in 8 bits with its own scale (round to nearest, of the row's greatest value,
as in Dettmers et al. 2022, arXiv 2208.07339, section 2.1, without its outliers); in `nf4` every 64 values lie in 4 bits
with their own scale (Dettmers et al. 2023, arXiv 2305.14314, without its double quantization; bitsandbytes does it);
`streamed` ones lie in the computer's memory. The blocks of the UNet, one transformer block or one residual block each,
get them back in the precision of the computation while they work. With gradient checkpointing nothing of a block
outlives that, so that the device holds the weights of one block at a time, and those of the next one where a GPU
fetches streamed ones ahead (see weight_prefetch.py).

Streamed weights may be trained: what a block computes with is then a copy, whose gradient goes to whoever waits for it
(see training/fused_backward.py), as ZeRO-Infinity has it (Rajbhandari et al. 2021, arXiv 2104.07857).
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

LEAST_VALUES = 4096  # of a weight that is worth it
NF4_BLOCK = 64  # values with a scale of their own
BLOCKS = (BasicTransformerBlock, ResnetBlock2D)


class StoredWeight(Protocol):
    """A weight between two uses."""

    def woken(self, device: torch.device) -> Tensor: ...


class Streamed:
    """It lies in the computer's memory, where a GPU can fetch it without the CPU.

    `arrived` is told each gradient of a trained one, which lies on the device that the weight was fetched to.
    """

    def __init__(self, weight: Tensor, device: torch.device) -> None:
        if device.type == "cuda":
            plain = weight
            weight = hardware.in_reach(lambda pinned: plain.pin_memory() if pinned else plain)
        self.kept = nn.Parameter(weight, requires_grad=False)
        self.fetched: Tensor | None = None  # ahead of its next use
        self.arrived: Callable[[Tensor], None] = lambda gradient: None

    def woken(self, device: torch.device) -> Tensor:
        fetched: Tensor = _Fetched.apply(self.kept, self, device)
        return fetched


class _Fetched(torch.autograd.Function):
    """A weight on the device. Its gradient does not follow it back to where the weight lies."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, streamed: Streamed, device: torch.device) -> Tensor:
        ctx.streamed = streamed
        fetched, streamed.fetched = streamed.fetched, None
        if fetched is not None and fetched.device == device:
            return fetched
        return hardware.brought(weight, device, copy=True)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:
        ctx.streamed.arrived(gradient)
        return None, None, None


class Int8:
    """It lies in 8 bits in buffers of its layer, which move with it."""

    def __init__(self, weight: Tensor, device: torch.device, layer: nn.Module) -> None:
        self.layer, self.dtype, self.shape = layer, weight.dtype, weight.shape
        rows = weight.to(device).float().flatten(1)
        scale = rows.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
        layer.register_buffer("resting_values", (rows / scale).round().to(torch.int8), persistent=False)
        layer.register_buffer("resting_scale", scale, persistent=False)

    def woken(self, device: torch.device) -> Tensor:
        values, scale = self.layer.resting_values, self.layer.resting_scale
        if values.is_cuda:  # in one operation, which reads 8 bits and writes no full precision on the way
            woken = torch.empty(values.shape, dtype=self.dtype, device=values.device)
            return torch.mul(values, scale, out=woken).reshape(self.shape)
        return (values.float() * scale).to(self.dtype).reshape(self.shape)


class NF4:
    """It lies in 4 bits in buffers of its layer, which move with it."""

    def __init__(self, weight: Tensor, device: torch.device, layer: nn.Module) -> None:
        from bitsandbytes import functional  # heavy: only where it is asked for

        self.functional = functional
        self.layer, self.dtype, self.shape = layer, weight.dtype, weight.shape
        flat = weight.to(device).flatten()  # its kernel for the CPU takes rows of whole blocks alone
        packed, state = functional.quantize_4bit(flat, blocksize=NF4_BLOCK, quant_type="nf4")
        layer.register_buffer("resting_values", packed, persistent=False)
        layer.register_buffer("resting_scale", state.absmax, persistent=False)

    def woken(self, device: torch.device) -> Tensor:
        values, scale = self.layer.resting_values, self.layer.resting_scale
        flat = torch.Size((self.shape.numel(),))
        state = self.functional.QuantState(scale, flat, blocksize=NF4_BLOCK, quant_type="nf4", dtype=self.dtype)
        woken: Tensor = self.functional.dequantize_4bit(values, state)
        return woken.reshape(self.shape)


def check(kind: str, device: torch.device) -> None:
    """Raises UserError if the UNet's weights cannot lie like this on this device."""
    if reason := fault(kind, device):
        raise UserError(f"memory.unet_weights: {kind} does not work here ({reason}); choose int8 or another.")


def fault(kind: str, device: torch.device) -> str:
    """Why weights cannot lie like this on this device; empty if they can."""
    return probe.fault(("memory.unet_weights", kind), device, lambda: try_here(kind, device)) if kind == "nf4" else ""


def try_here(kind: str, device: torch.device) -> str:
    """The same for weights in 4 bits, found in this process on a small one."""
    weight = torch.linspace(-1, 1, 64 * 128).reshape(64, 128)
    try:
        back = NF4(weight, device, nn.Linear(1, 1)).woken(device).cpu()
    except Exception as error:  # noqa: BLE001  (whatever it is, this is not for here)
        return out_of_memory.first_line(error)
    return "" if (back - weight).abs().max() < 0.2 else "its values do not come back"


def store_weights(
    unet: nn.Module,
    kind: str,
    device: torch.device,
    tell: Callable[[Problem], None] = lambda said: None,
    by: Streams | None = None,
) -> None:
    """Has the large weights of each block rest in one of these ways. Nothing of the UNet may be trained as yet.

    Streamed ones are fetched ahead `by` such streams, or the device's own; `tell` hears where that goes wrong.
    """
    streams, ahead = by or weight_prefetch.streams(device), None
    if kind == "streamed" and streams:
        ahead = Prefetcher(streams, device, tell)
        unet.register_forward_pre_hook(lambda *_: ahead.begin_pass())
    for block in unet.modules():
        if kind != "whole" and isinstance(block, BLOCKS):
            _lay_block(block, kind, device, ahead)
    if kind == "streamed" and device.type == "cuda" and not hardware.pins():
        said = "memory.unet_weights: too little of the computer's memory (RAM) can be pinned for a card to fetch from"
        tell(Problem(f"{said}; it waits for what is not.", "memory.unet_weights", "Close other programs."))


def has_stored_weights(unet: nn.Module) -> bool:
    """Whether any of its weights rest in another way than whole."""
    return any(hasattr(layer, "resting") for layer in unet.modules())


def named_weights(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """As `named_parameters`, with those that are streamed as they lie in the computer's memory."""
    lying = {f"{path}.weight": made.kept for path, made in streamed(module)}
    for name, weight in module.named_parameters():
        yield name, lying.get(name, weight)


def streamed(module: nn.Module) -> Iterator[tuple[str, Streamed]]:
    """The weights that lie in the computer's memory, by the path of their layer."""
    for path, layer in module.named_modules():
        if isinstance(made := getattr(layer, "resting", None), Streamed):
            yield path, made


def _lay_block(block: nn.Module, kind: str, device: torch.device, ahead: Prefetcher | None) -> None:
    resting: list[tuple[nn.Module, StoredWeight]] = []
    for layer, weight in large_weights(block):
        made = _made(kind, layer, weight.data, device)
        layer.resting = made  # type: ignore[assignment]
        resting.append((layer, made))
    _fall_asleep(resting)
    lying = [made for _, made in resting if isinstance(made, Streamed)]
    if ahead:
        ahead.blocks[block] = [made.kept for made in lying]

    def wake(module: nn.Module, inputs: Any) -> None:
        place = next(tensor.device for tensor in inputs if isinstance(tensor, Tensor))
        if ahead and (fetched := ahead.turn(block)):
            for one, weight in zip(lying, fetched):
                one.fetched = weight
        for layer, made in resting:
            layer._parameters["weight"] = made.woken(place)  # type: ignore[assignment]

    block.register_forward_pre_hook(wake)
    block.register_forward_hook(lambda *_: _fall_asleep(resting), always_call=True)


def _made(kind: str, layer: nn.Module, weight: Tensor, device: torch.device) -> StoredWeight:
    if kind == "streamed":
        return Streamed(weight, device)
    return (Int8 if kind == "int8" else NF4)(weight, device, layer)


def _fall_asleep(resting: list[tuple[nn.Module, StoredWeight]]) -> None:
    """Leaves nothing in the weights' places, with as many dimensions, by which peft knows what a layer is."""
    for layer, _ in resting:
        weight = layer._parameters["weight"]
        if weight is not None and weight.numel():
            layer._parameters["weight"] = nn.Parameter(weight.new_empty(0, *weight.shape[1:]), requires_grad=False)


def large_weights(block: nn.Module) -> Iterator[tuple[nn.Module, Tensor]]:
    for layer in block.modules():
        weight = layer._parameters.get("weight")
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and weight is not None and weight.numel() >= LEAST_VALUES:
            yield layer, weight
