"""A plan of the planner run on the processor inside a cap of memory, and refused by the system below it.

    python -m dreambooth.engine.bench.capped [--pixels 256] [--setting KEY=VALUE ...]

Full fine-tuning of SD 1's UNet at full size with random weights, its step in the backward pass: each try is a process
that may hold so many private bytes (RLIMIT_DATA) beside what Python and PyTorch hold before the model is made. The cap
is what the planner says of weights, optimizer, gradients and activations, times a factor.

It shows that nothing large is held that is not counted. It does not show what a card's kernels take beside the tensors,
nor its allocator's gaps, nor what lies in the computer's memory when it is streamed, as here both are the same.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from dreambooth.core import footprint, settings
from dreambooth.core.settings import Settings

FACTORS = (1.1, 1.0, 0.9, 0.8)
PLAN = {
    "general.method": "full",
    "memory.bf16_weights": "true",
    "memory.step_in_backward": "true",
    "optimizer.name": "adafactor",
    "previews.count": "0",
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pixels", type=int, default=256)
    parser.add_argument("--setting", action="append", default=[])
    parser.add_argument("--factor", type=float)
    asked = parser.parse_args()
    flat = {**PLAN, **dict(one.split("=", 1) for one in asked.setting)}
    chosen = settings.parse({key: _value(text) for key, text in flat.items()})
    if asked.factor is not None:
        print(json.dumps(_try(chosen, asked.pixels, asked.factor)))
        return
    for factor in FACTORS:
        command = [sys.executable, "-m", __spec__.name, *sys.argv[1:], "--factor", str(factor)]  # type: ignore[union-attr]
        # Memory that is given back goes back at once: what is left is what is held.
        plain = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
        done = subprocess.run(command, env=plain, capture_output=True, text=True)
        said = done.stdout.strip().splitlines()[-1:] or [f"killed: {done.stderr.strip().splitlines()[-1][:150]}"]
        print(factor, *said, flush=True)


def needed(chosen: Settings, pixels: int) -> int:
    """What the planner says of weights, optimizer, gradients and activations of a step."""
    model = footprint.full_size("sd1")
    told = footprint.needs(chosen, model, "sd1", pixels**2)
    return told.weights + told.optimizer + footprint.passing_bytes(chosen, model, "sd1", pixels**2)


def _try(chosen: Settings, pixels: int, factor: float) -> dict[str, object]:
    from dreambooth.engine.bench.footprint import Point
    from dreambooth.engine.bench.streaming import build

    before, most = _private_bytes(), needed(chosen, pixels)
    cap = before + int(factor * most)
    resource.setrlimit(resource.RLIMIT_DATA, (cap, cap))
    began, losses = time.monotonic(), []
    try:
        _, _, step = build(chosen, "sd1", Point(1, pixels // 8))
        losses = [round(float(step()), 4) for _ in range(2)]
    except (RuntimeError, MemoryError) as error:
        return {"cap": cap, "held": False, "said": str(error).splitlines()[0][:100]}
    seconds = round(time.monotonic() - began)
    return {"cap": cap, "needed": most, "before": before, "held": True, "losses": losses, "seconds": seconds}


def _private_bytes() -> int:
    """As RLIMIT_DATA counts them."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


if __name__ == "__main__":
    main()
