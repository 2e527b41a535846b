"""A training job, or the decoding of a picture, under the clock: `python -m dreambooth.engine.bench.choices_run ABOUT`.

A step is what lies between the beginnings of two, whatever it is made of: with the optimizer's step in the backward
pass there is no one moment at which an optimizer has stepped.
"""

from __future__ import annotations

import functools
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dreambooth.core.models.families import LATENT_FACTOR
from dreambooth.engine import __main__ as engine
from dreambooth.engine.bench import watch
from dreambooth.engine.process import lazy_imports

_DECODED = 5  # times each way


def main(about_file: Path) -> int:
    lazy_imports.install()
    about = json.loads(about_file.read_text(encoding="utf-8"))
    code, found = _training(about) if "job" in about else (0, _decoding(Path(about["model"])))
    found |= {"peak_bytes": watch.peak_bytes(), "device_peak_bytes": watch.device_peak_bytes()}
    Path(about["out"]).write_text(json.dumps(found), encoding="utf-8")
    return code


def _training(about: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    from dreambooth.engine.training.traced_step import TracedStep

    clock, cpu, run = list[Any](), list[float](), TracedStep.run

    @functools.wraps(run)
    def noted(*arguments: Any) -> Any:
        clock.append(watch.now())
        cpu.append(time.process_time())
        return run(*arguments)

    TracedStep.run = noted  # type: ignore[method-assign]
    code = engine.main([about["job"]])
    watch.wait()
    warm = min(watch.WARM_STEPS, about["steps"] // 4)
    steps = [watch.seconds(a, b) for a, b in itertools.pairwise(clock)][warm:]
    worked = [b - a for a, b in itertools.pairwise(cpu)][warm:]
    return code, {"seconds": statistics.median(steps), "cpu_seconds": statistics.median(worked)}


def _decoding(file: Path) -> dict[str, Any]:
    """Seconds of one picture of twice the model's size, decoded at once and in tiles of the model's size, in turn."""
    import torch

    from dreambooth.engine import families
    from dreambooth.engine.drawing.sampling import decoding
    from dreambooth.engine.training import precision

    model = families.load_file(file)
    model.to(precision.accelerator("auto").device)
    side = 2 * model.vae.tile_sample_min_size // LATENT_FACTOR
    latents, taken = torch.randn(1, 4, side, side), dict[str, list[tuple[float, float]]]()
    for _ in range(_DECODED + 1):
        for how in ("sliced", "tiled"):
            with decoding(model, how), torch.no_grad():
                taken.setdefault(how, []).append(_timed(functools.partial(model.decode, latents)))
    middle = {how: [statistics.median(one[n] for one in some[1:]) for n in (0, 1)] for how, some in taken.items()}
    return {"sliced": middle["sliced"], "tiled": middle["tiled"]}


def _timed(work: Callable[[], Any]) -> tuple[float, float]:
    began, cpu = watch.now(), time.process_time()
    work()
    ended = watch.now()
    watch.wait()
    return watch.seconds(began, ended), time.process_time() - cpu


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
