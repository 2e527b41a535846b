"""What a device could do at the most: copying, and products of matrices in bf16. All else is compared with these."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable
from typing import Any

import torch

from dreambooth.engine.bench import watch
from dreambooth.engine.bench.versions import MEASURED, versions

TURNS = 10


def about_software() -> dict[str, str]:
    found = versions((*MEASURED, "bitsandbytes", "xformers"))
    if torch.cuda.is_available():
        found |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    return {**found, "python": platform.python_version()}


def card(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {"name": "no card: the CPU and the miniatures, which says nothing of a card"}
    about = torch.cuda.get_device_properties(device)
    return {
        "name": about.name,
        "capability": f"{about.major}.{about.minor}",
        "bytes": about.total_memory,
        "multiprocessors": about.multi_processor_count,
    }


def copied_bytes_per_second(device: torch.device, size: int) -> float:
    """Reading and writing count."""
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / seconds(lambda: target.copy_(source))


def flops_per_second(device: torch.device, side: int) -> float:
    """Of a square product in bf16; of random numbers, as zeros would go quicker."""
    one, other = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    return 2 * side**3 / seconds(lambda: one @ other)


def seconds(work: Callable[[], Any]) -> float:
    """The median of some turns after three that warm up."""
    for _ in range(3):
        work()
    taken = []
    for _ in range(TURNS):
        began = watch.when_done()
        work()
        taken.append(watch.when_done() - began)
    return statistics.median(taken)
