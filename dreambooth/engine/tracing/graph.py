"""A program as a CUDA graph: all of its operations are launched at once.

A graph reads and writes fixed memory, which it keeps as long as it exists: inputs are copied there, and outputs are
valid until the next replay. See docs.pytorch.org, "CUDA semantics", on CUDA graphs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from dreambooth.engine.hardware import NEEDS_CARD
from dreambooth.engine.tracing.program import Program

LAST_TO_LEAK = "2.13.0"  # the last PyTorch whose graphs keep their pool after a capture that failed

Captured = tuple[Callable[[], None], tuple[Tensor, ...]]  # the replay, and the outputs that it writes


def fault(device: torch.device) -> str:
    """Why there are no CUDA graphs on this device; empty if there are."""
    return "" if device.type == "cuda" else NEEDS_CARD


@dataclass(frozen=True)
class Room:
    """The memory pool that graphs share and the stream that they are captured on, on which alone memory is reused."""

    pool: Any
    stream: Any


class Graph:
    """Replays a program as a CUDA graph.

    Raises RuntimeError where it cannot be captured, such as a copy from memory that is not pinned.
    """

    def __init__(self, program: Program, inputs: Sequence[Tensor], like: Graph | None = None) -> None:
        """`like` is a graph whose memory pool this one shares: a replay of one invalidates the other's outputs."""
        self.program = program
        self.inputs = [tensor.clone() for tensor in inputs]
        self.room = like.room if like else _room(inputs[0].device)
        self._replay, self.outputs = capture(program, self.inputs, self.room)

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        for own, given in zip(self.inputs, inputs):
            own.copy_(given, non_blocking=True)
        self._replay()
        return self.outputs


def capture(program: Program, inputs: list[Tensor], room: Room) -> Captured:
    """Captures a program, after running it once, as libraries are initialized then.

    Where this raises RuntimeError, graphs of the same pool must not be replayed any more: PyTorch may have freed the
    workspace that cuBLAS had on their stream.
    """
    graph, is_begun, culprit = torch.cuda.CUDAGraph(), False, None
    room.stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(room.stream):
        program(inputs)
        try:
            with torch.cuda.graph(graph, pool=room.pool, stream=room.stream):
                is_begun = True
                try:
                    outputs = program(inputs)
                except Exception as error:
                    culprit = error
                    raise
        except RuntimeError as error:  # of the capture's end, where the device has refused what was asked within it
            with contextlib.suppress(RuntimeError):  # where even that fails, what is asked next says so
                _end(graph, room.pool, is_begun=is_begun)
            raise _as_runtime_error(culprit or error) from None
    torch.cuda.current_stream().wait_stream(room.stream)
    return graph.replay, outputs


def _as_runtime_error(culprit: Exception) -> RuntimeError:
    return culprit if isinstance(culprit, RuntimeError) else RuntimeError(f"{type(culprit).__name__}: {culprit}")


def _end(graph: torch.cuda.CUDAGraph, pool: Any, *, is_begun: bool) -> None:
    """Ends a capture that the device has refused, which PyTorch itself leaves half ended: its allocator would give back
    no memory any more, and its generator no random numbers, until a capture has gone well.

    That one is on a stream of its own, as what cuBLAS has on its stream goes with it.
    """
    device = torch.cuda.current_device()
    try:
        torch._C._cuda_endAllocateToPool(device, pool)
    except RuntimeError:  # it has left the pool, whose memory is the graph's to give back, if there is one
        if not is_begun or _is_whole(graph):
            return
    if _keeps_pool(torch.__version__, torch.version.hip):
        torch._C._cuda_releasePool(device, pool)
    with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=torch.cuda.Stream()):
        torch.zeros(1, device="cuda")


def _keeps_pool(version: str, hip: str | None) -> bool:
    """Whether a graph whose capture failed never gives its pool back. Later it does (pytorch/pytorch pull request
    190348), and so do AMD's own builds of earlier versions; to give back twice is an error."""
    return hip is None and TorchVersion(version.partition("+")[0]) <= LAST_TO_LEAK


def _is_whole(graph: torch.cuda.CUDAGraph) -> bool:
    """Whether its capture has ended well, whatever was raised within it."""
    try:
        graph.pool()
    except RuntimeError:
        return False
    return True


def _room(device: torch.device) -> Room:
    if device.type != "cuda":
        return Room(None, None)
    return Room(torch.cuda.graph_pool_handle(), torch.cuda.Stream())
