"""A training job inside the memory of a smaller card: `python -m dreambooth.engine.bench.plans_run ABOUT`, ABOUT a JSON
file. What it needed is written whether it came to its end or not."""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from dreambooth.engine import __main__ as engine
from dreambooth.engine.bench import watch
from dreambooth.engine.bench.card_memory import Card, Cuda, Moments
from dreambooth.engine.process import lazy_imports

TIMED_STEPS = 3  # the last ones; the first allocate and tune


def main(about_file: Path) -> int:
    lazy_imports.install()  # as the engine does
    about = json.loads(about_file.read_text(encoding="utf-8"))
    with contextlib.ExitStack() as until_the_end:
        card: Card = _simulated(until_the_end) if about["simulated"] else Cuda()
        if about["cap_bytes"]:
            card.limit(about["cap_bytes"])
        moments = Moments(card)
        moments.watch()
        code = engine.main([about["job"]])
        moments.look("end", {})
        Path(about["out"]).write_text(json.dumps(found(card, moments)), encoding="utf-8")
    return code


def found(card: Card, moments: Moments) -> dict[str, Any]:
    between = [b - a for a, b in zip(moments.steps, moments.steps[1:])]
    return {
        "allocated_bytes": max(moments.allocated.values()),
        "reserved_bytes": moments.reserved,
        "outside_bytes": card.outside(),
        "retries": card.retries(),
        "moments": moments.allocated,
        "steps": len(moments.steps),
        "step_seconds": statistics.median(between[-TIMED_STEPS:]) if between else None,
        "losses": moments.losses,
        "process_bytes": watch.peak_bytes(),
        "workspace_bytes": card.workspaces(),
    }


def _simulated(until_the_end: contextlib.ExitStack) -> Card:
    from dreambooth.engine.bench.card_simulated import Simulated

    return until_the_end.enter_context(Simulated())


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
