"""Where the time of a training step goes: `python -m dreambooth.engine.bench.card_idle_time ABOUT`, ABOUT a JSON file.

The same run is timed for some steps without an instrument, and for some with PyTorch's profiler. What the card's own
work takes in a step, beside what the step takes by the clock, says how long the card waits to be asked.
"""

from __future__ import annotations

import functools
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from dreambooth.engine import __main__ as engine
from dreambooth.engine.bench.watch import when_done
from dreambooth.engine.process import lazy_imports

TIMED, PROFILED = range(10, 20), range(20, 25)  # steps
LONGEST = 12  # kinds of work that are named


class Waiting:
    """Looks at each step when it is done."""

    def __init__(self) -> None:
        import torch

        self.torch, self.done = torch, 0
        self.on_card = torch.cuda.is_available()
        self.began = self.wall = self.profiled_wall = 0.0
        self.profiler: Any = None

    def install(self) -> None:
        from dreambooth.engine.training.step_metrics import StepMetrics

        report = StepMetrics.report_if_due

        @functools.wraps(report)
        def told(metrics: StepMetrics) -> None:
            self.step_ended()
            report(metrics)

        StepMetrics.report_if_due = told  # type: ignore[method-assign]

    def step_ended(self) -> None:
        self.done += 1
        if self.done == TIMED.start:
            self.began = when_done()
        elif self.done == TIMED.stop:
            self.wall = (when_done() - self.began) / len(TIMED)
            activity = self.torch.profiler.ProfilerActivity
            kinds = [activity.CPU, activity.CUDA] if self.on_card else [activity.CPU]
            self.profiler = self.torch.profiler.profile(activities=kinds)
            self.profiler.__enter__()
            self.began = when_done()
        elif self.done == PROFILED.stop:
            self.profiled_wall = (when_done() - self.began) / len(PROFILED)
            self.profiler.__exit__(None, None, None)

    def found(self) -> dict[str, Any]:
        """Seconds a step. Without a card its work is what the CPU spends in operations of PyTorch."""
        by_name, count = Counter[str](), 0
        for event in self.profiler.events():
            spent = self._spent(event)
            by_name[event.name] += spent
            count += spent > 0
        steps = len(PROFILED)
        worked = sum(by_name.values()) / 1e6 / steps
        longest = [[name[:90], spent / 1e6 / steps] for name, spent in by_name.most_common(LONGEST)]
        return {
            "wall_seconds": self.wall,
            "profiled_wall_seconds": self.profiled_wall,
            "worked_seconds": worked,
            "pieces_of_work": count / steps,
            "busy": worked / self.wall,
            "longest": longest,
        }

    def _spent(self, event: Any) -> float:
        """Microseconds of the device's own work."""
        is_its = event.device_type == (self.torch.autograd.DeviceType.CUDA if self.on_card else _cpu(self.torch))
        if not is_its or getattr(event, "is_user_annotation", False):
            return 0.0
        return float(event.self_device_time_total if self.on_card else event.self_cpu_time_total)


def _cpu(torch: Any) -> Any:
    return torch.autograd.DeviceType.CPU


def main(about_file: Path) -> int:
    lazy_imports.install()  # as the engine does
    about, waiting = json.loads(about_file.read_text(encoding="utf-8")), Waiting()
    waiting.install()
    if code := engine.main([about["job"]]):
        return code
    Path(about["out"]).write_text(json.dumps(waiting.found()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
