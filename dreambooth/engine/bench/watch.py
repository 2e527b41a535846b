"""What is seen of a training process from within: when each step ended, what of it was the UNet's forward and
backward, the losses, the arithmetic of a step, and the most memory. The same instrument for us and for others: it takes
hold of the UNet's class, accelerate's `backward` and torch's optimizers, not of our own code. It runs in the Python of
others too, and imports nothing that is not in it.
"""

from __future__ import annotations

import functools
import importlib
import json
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WARM_STEPS = 5  # the first ones allocate and tune; they are left out of the median
UNET = "diffusers:UNet2DConditionModel"  # module and class, of which our models are


class Watch:
    """Counts a step at each step of an optimizer. With a card, `flops` has the arithmetic of the last step, which is
    not timed."""

    def __init__(self, steps: int, started: float, unet: str = UNET) -> None:
        self.steps, self.started, self.unet = steps, started, unet
        self.ends: list[Any] = []
        self.cpu: list[float] = []  # seconds of it until each step ended
        self.spans: list[tuple[int, Any, Any]] = []  # of forward and backward, with the steps that had ended before
        self.losses: list[Any] = []
        self.first_step_seconds = 0.0
        self.flops = 0
        self.trained = 0  # numbers that the optimizer changes
        self.replays = 0  # of CUDA graphs
        self.programs = 0  # steps, or their tries, that were done again from their record
        self._counter: Any = None

    def install(self) -> None:
        """Takes hold of the libraries; they must not be in use yet."""
        import accelerate
        from torch.optim.optimizer import register_optimizer_step_post_hook

        module, _, name = self.unet.partition(":")
        unet: Any = getattr(importlib.import_module(module), name)
        unet.forward = self.timed(unet.forward)
        backward = self.timed(accelerate.Accelerator.backward)

        @functools.wraps(backward)
        def told(accelerator: Any, loss: Any, **more: Any) -> None:
            self.losses.append(loss.detach())
            backward(accelerator, loss, **more)

        accelerate.Accelerator.backward = told  # type: ignore[method-assign]
        register_optimizer_step_post_hook(lambda optimizer, *_: self.step_ended(optimizer))

    def step_ended(self, optimizer: Any) -> None:
        """The device is waited for once, after the first step. What an optimizer does before anything of the UNet has
        gone backward is no step of the training: we try ours on a small problem first."""
        if not self.losses:
            return
        if self._counter:
            self.flops = self._counter.get_total_flops()
            self._counter.__exit__(None, None, None)
            self._counter = None
            return
        if not self.ends:
            wait()
            self.first_step_seconds = time.time() - self.started
            self.trained = sum(
                p.numel() for group in optimizer.param_groups for p in group["params"] if p.requires_grad
            )
        self.ends.append(now())
        self.cpu.append(time.process_time())
        if len(self.ends) == self.steps - 1 and _has_card():
            from torch.utils.flop_counter import FlopCounterMode

            self._counter = FlopCounterMode(display=False)
            self._counter.__enter__()

    def found(self) -> dict[str, Any]:
        """Everything that was seen, as JSON; the process is about to end."""
        wait()
        steps = [seconds(a, b) for a, b in zip(self.ends, self.ends[1:])][WARM_STEPS - 1 :]
        worked = [b - a for a, b in zip(self.cpu, self.cpu[1:])][WARM_STEPS - 1 :]
        inside = [seconds(a, b) for ended, a, b in self.spans if WARM_STEPS <= ended < len(self.ends)]
        return {
            "first_step_seconds": self.first_step_seconds,
            "first_step_cpu_seconds": self.cpu[0],
            "step_seconds": statistics.median(steps),
            "step_cpu_seconds": statistics.median(worked),
            "model_seconds": sum(inside) / len(steps) if steps else 0.0,
            "mean_step_seconds": sum(steps) / len(steps),
            "flops": self.flops,
            "trained": self.trained,
            "replays": self.replays,
            "programs": self.programs,
            "after_first_seconds": seconds(self.ends[0], self.ends[-1]),
            "losses": [round(float(loss), 6) for loss in self.losses[:8]],
            "peak_bytes": peak_bytes(),
            "device_peak_bytes": device_peak_bytes(),
        }

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*arguments: Any, **more: Any) -> Any:
            if _has_card() and _is_capturing():  # an event would become a part of the graph
                return function(*arguments, **more)
            began = now()
            result = function(*arguments, **more)
            self.spans.append((len(self.ends), began, now()))
            return result

        return timed

    def counted(self, function: Callable[..., Any], what: str) -> Callable[..., Any]:
        """`what` is `replays` or `programs`."""

        @functools.wraps(function)
        def counted(*arguments: Any, **more: Any) -> Any:
            setattr(self, what, getattr(self, what) + 1)
            return function(*arguments, **more)

        return counted


def begin(about: dict[str, Any]) -> Watch:
    watch = Watch(about["steps"], about["started"], about.get("unet", UNET))
    watch.install()
    return watch


def peak_bytes() -> int:
    """The most memory that this process has held at once; mapped parts of files count too."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    if sys.platform == "linux":  # where getrusage counts what the process that started it held, too
        status = Path("/proc/self/status").read_text(encoding="ascii")
        if found := re.search(r"VmHWM:\s*(\d+) kB", status):  # not everything that passes for Linux has it
            return 1024 * int(found[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def tell(watch: Watch, out: Path, **more: Any) -> None:
    out.write_text(json.dumps({**watch.found(), **more}), encoding="utf-8")


def _has_card() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _is_capturing() -> bool:
    """Whether what the device is asked for goes into a CUDA graph."""
    import torch

    return torch.cuda.is_current_stream_capturing()


def now() -> Any:
    """A moment: of the CPU's clock, or on a GPU an event in its queue, which nobody waits for."""
    import torch

    if not _has_card():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds(began: Any, ended: Any) -> float:
    return ended - began if isinstance(began, float) else began.elapsed_time(ended) / 1000


def wait() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def when_done() -> float:
    """The CPU's clock when a GPU has done all that it was asked for."""
    wait()
    return time.perf_counter()


def device_peak_bytes() -> int:
    """The most memory of a GPU that tensors have held at once; 0 without one."""
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
