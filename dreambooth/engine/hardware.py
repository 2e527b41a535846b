"""What differs between devices: a card of NVIDIA or AMD (cuda, to PyTorch), an Apple GPU (mps), the CPU."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import re
import sys
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager

import psutil
import torch
from torch import Tensor

from dreambooth.core import linux
from dreambooth.engine import out_of_memory

NEEDS_CARD = "it needs a card of NVIDIA or AMD"
_MOST_BUFFERS = 16  # about two batches' latents, masks and texts
# Cards with the Turing chips TU116 and TU117; others of that generation, such as the Tesla T4, have tensor cores.
_WITHOUT_TENSOR_CORES = re.compile(r"\b(?:GTX 16\d\d|MX[45]50|T[456]00|T550|T1000|T1200|T2000)\b")
_FEW_PARAMETERS = 50_000_000  # the miniature has 4 million, the smallest full-size UNet 860 million
# Chips of AMD without arithmetic in bf16: Vega and RDNA 1 and 2, such as an RX 6600's; CDNA (gfx908, gfx90a) has it.
_AMD_WITHOUT_BF16 = re.compile(r"gfx(?:10\d|90[0269c])")
_PINS = [True]
_LIMITS: set[float] = set()  # shares of the card that this process may take, as they were set here


def here() -> torch.device:
    """The device of this machine, as accelerate chooses it."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return "the Apple GPU" if device.type == "mps" else "the CPU"


def alike(device: torch.device) -> tuple[int, str]:
    """How many processes find a device of this kind each, and what it is called; of the CPU its cores."""
    if device.type == "cpu":
        return psutil.cpu_count() or 1, "CPU core"
    return torch.cuda.device_count() if device.type == "cuda" else 1, "GPU"


def choose_threads(parameters: int) -> None:
    """Has the CPU compute a UNet of so few parameters on one thread, unless OMP_NUM_THREADS says on how many: handing
    pieces of small layers to other cores takes longer than computing them, and far longer if these cores are busy."""
    if parameters < _FEW_PARAMETERS and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def does_bf16(device: torch.device) -> bool:
    """Whether it computes in bf16, at whatever pace."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device.type != "mps" or torch.backends.mps.is_macos_or_newer(14, 0)


def is_quick_in_bf16(device: torch.device) -> bool:
    """Whether bf16 is worth computing in. A card from before Ampere (2020) emulates it, and has no kernel of attention
    for it but the plain one, which keeps the whole matrix. Of AMD's older ones PyTorch does not say that."""
    if device.type == "cuda" and torch.version.hip:
        return _AMD_WITHOUT_BF16.match(torch.cuda.get_device_properties(device).gcnArchName) is None
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return does_bf16(device)


def breaks_in_fp16(device: torch.device) -> bool:
    """Whether convolutions in fp16 are known to give NaN: on a Turing chip without tensor cores, such as a GTX 16xx's
    (pytorch/pytorch issues 58123 and 77955)."""
    if device.type != "cuda":
        return False
    is_turing = torch.cuda.get_device_capability(device) == (7, 5)
    return is_turing and _WITHOUT_TENSOR_CORES.search(torch.cuda.get_device_name(device)) is not None


def memory_bytes(device: torch.device) -> int:
    """What a device can give at most; 0 for the CPU. An Apple GPU has part of the computer's own memory: as much
    as Metal advises to use."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(0).total_memory
    return torch.mps.recommended_max_memory() if device.type == "mps" else 0


def free_bytes(device: torch.device) -> int:
    """How much of a device's memory is free, with what PyTorch keeps there for later; of what it may take, where that
    is not the whole card (see bench/card_memory.py).

    Of a card PyTorch first gives back what it keeps: what it still holds then may be a CUDA graph's, which nobody
    else can use.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        held, (free, total) = torch.cuda.memory_reserved(device), torch.cuda.mem_get_info(device)
        return min(free, int(total * torch.cuda.get_per_process_memory_fraction()) - held)
    available = available_bytes()
    if device.type != "mps":
        return available
    held, used = torch.mps.driver_allocated_memory(), torch.mps.current_allocated_memory()
    return max(0, min(torch.mps.recommended_max_memory() - held, available)) + held - used


def available_bytes() -> int:
    """How much of the computer's own memory is free, or can be at once; in a container what its limit leaves."""
    free: int = psutil.virtual_memory().available
    room = linux.room_bytes()
    return free if room is None else min(free, room)


def swap_bytes() -> int:
    """How much of what lies in the computer's memory could be put on the disk."""
    return int(psutil.swap_memory().free)


def refuse_more_than_is_free(device: torch.device) -> None:
    """Has PyTorch raise where more of a card is asked for than is free of it. On Windows its driver would lend the
    computer's memory instead, which is many times slower, and nobody would be told; within WSL whatever that is told
    (microsoft/WSL issue 11050). A smaller limit of others stays."""
    if device.type != "cuda" or not (sys.platform == "win32" or linux.is_in_windows()):
        return
    limit = torch.cuda.get_per_process_memory_fraction()
    if limit < 1 and limit not in _LIMITS:
        return
    free, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(min(1.0, (free + torch.cuda.memory_reserved()) / total))
    _LIMITS.add(torch.cuda.get_per_process_memory_fraction())


def most_used_bytes(device: torch.device) -> int:
    """The most that was in use at once; 0 on the CPU. Of an Apple GPU what PyTorch holds, which does not shrink
    by itself, as nothing else is counted there."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return torch.mps.driver_allocated_memory() if device.type == "mps" else 0


def random_numbers_kept(device: torch.device) -> AbstractContextManager[None]:
    """After it random numbers come as if it had not been."""
    return torch.random.fork_rng([] if device.type == "cpu" else [device])


def pin_exactly() -> None:
    """Has PyTorch pin as much of the computer's memory for a card as it is asked for. It would round each tensor up to
    a power of two, which is a fifth to a third more of a model, and keep what is let go of for later.

    What is not rounded must not be kept either: of what is kept the next one is given whatever is nearest to the same
    power of two, be it too small. So the setting is the one for what is kept, above which nothing is rounded.
    """
    with contextlib.suppress(AttributeError, RuntimeError, ValueError):  # a PyTorch that has no such setting
        chosen = torch._C._accelerator_getAllocatorSettings()
        if "pinned_max" not in chosen:  # by the person, or here; what is not said again goes back to its default
            added = ",".join(filter(None, (chosen, "pinned_max_cached_size_mb:1")))
            torch._C._accelerator_setAllocatorSettings(added)


def in_reach(make: Callable[[bool], Tensor]) -> Tensor:
    """What is made, pinned or not, of the computer's memory: pinned, from where a card fetches it by itself, as long as
    there is enough of that."""
    if _PINS[0]:
        with out_of_memory.caught():
            return make(True)
        _PINS[0] = False
    return make(False)


def pins() -> bool:
    """Whether the computer has had enough memory to be pinned so far."""
    return _PINS[0]


def wait_for_card() -> None:
    """Until it has done all that it was asked for; without one nothing is waited for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def give_back_pinned() -> None:
    """Has PyTorch give back pinned memory that nobody holds any more. Copies into it are waited for."""
    if torch.cuda.is_available() and (give_back := getattr(torch._C, "_host_emptyCache", None)):
        torch.cuda.synchronize()
        give_back()


def give_back_memory() -> None:
    """Has PyTorch give back what it keeps for later."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


def free_memory() -> None:
    """Frees what a failed attempt held; nothing must refer to it any more."""
    gc.collect()
    give_back_memory()


def brought(tensor: Tensor, device: torch.device, *, copy: bool = False) -> Tensor:
    """A tensor on the device. A card fetches it by itself while the CPU goes on.

    An Apple GPU is waited for: what it is to fetch later PyTorch may have let go of by then, and nothing says so
    (pytorch/pytorch issues 139550 and 189690).
    """
    return tensor.to(device, non_blocking=device.type != "mps", copy=copy)


class PinnedBuffers:
    """Pinned memory through which a card fetches what lies in other memory of the computer: for that its driver would
    have the CPU wait. It is kept for the next time, as pinning takes far longer than a copy. For one thread alone."""

    def __init__(self) -> None:
        self._used: deque[tuple[Tensor, torch.cuda.Event]] = deque()  # with the end of its copy, the oldest first

    def rows_brought(self, tensor: Tensor, rows: Tensor, device: torch.device) -> Tensor:
        """Some rows of a tensor (n, ...), by their numbers (B,) on the CPU -> (B, ...) on the device."""
        if device.type != "cuda" or tensor.device.type != "cpu":
            return brought(tensor[brought(rows, tensor.device)], device)
        shape = (len(rows), *tensor.shape[1:])
        count = math.prod(shape) * tensor.itemsize
        buffer, copied = self._free(count)
        some = buffer[:count].view(tensor.dtype).view(shape)
        found = brought(torch.index_select(tensor, 0, rows, out=some), device)
        copied.record()
        return found

    def _free(self, count: int) -> tuple[Tensor, torch.cuda.Event]:
        """A buffer of at least so many bytes that no copy reads any more: the oldest, or another while that is in use,
        so that the CPU may go on before the card has come so far."""
        is_free = bool(self._used) and self._used[0][1].query()
        if not is_free and len(self._used) < _MOST_BUFFERS:
            buffer, copied = _new_buffer(count), torch.cuda.Event()
        else:
            buffer, copied = self._used.popleft()
            copied.synchronize()
            if len(buffer) < count:
                buffer = _new_buffer(count)
        self._used.append((buffer, copied))
        return buffer, copied


def _new_buffer(count: int) -> Tensor:
    return in_reach(lambda pinned: torch.empty(count, dtype=torch.uint8, pin_memory=pinned))
