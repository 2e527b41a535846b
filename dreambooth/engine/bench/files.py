"""Time and peak memory of what is done with files: creating a model, loading it, exporting it and what it learned,
beside a plain copy of the same bytes through safetensors. Each is a process of its own, three times in turn."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dreambooth.core import project
from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import PROJECT
from dreambooth.core.job_folder import Job
from dreambooth.core.project import Folders, open_project
from dreambooth.engine.bench.watch import peak_bytes
from dreambooth.engine.process.listener import asked_to_end

FAMILIES = ("sd1", "sdxl")
REPEATS = 3
EXTRACTED_RANK = 32
_MODELS = "models"


def run(job: Job) -> dict[str, Any]:
    """Measures in the folder that job.json names, and removes it. Returns a row for each family and work."""
    folder = Path(job.read()["out"])
    try:
        return {"rows": _rows(folder, job)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _rows(folder: Path, job: Job) -> list[dict[str, Any]]:
    rows, done, total = [], 0, len(FAMILIES) * (1 + REPEATS * len(WORKS))

    def measure(work: str, family: str) -> dict[str, float]:
        nonlocal done
        if asked_to_end(job):
            raise UserError("Stopped as asked; nothing was measured to the end.")
        job.report("stage", name=f"{family}: {work}", done=done, total=total)
        done += 1
        return _measured(folder, work, family)

    for family in FAMILIES:
        measure("make", family)
        taken: dict[str, list[dict[str, float]]] = {work: [] for work in WORKS}
        for _ in range(REPEATS):
            for work in WORKS:
                taken[work].append(measure(work, family))
        size = _file(folder, family).stat().st_size
        for work, measured in taken.items():
            rows.append(
                {
                    "family": family,
                    "work": work,
                    "file_bytes": size,
                    "seconds": statistics.median(one["seconds"] for one in measured),
                    "peak_bytes": max(one["peak_bytes"] for one in measured),
                }
            )
        _file(folder, family).unlink()
        _trained(folder, family).unlink()
    return rows


def _file(folder: Path, family: str) -> Path:
    return folder / f"{family}.safetensors"


def _trained(folder: Path, family: str) -> Path:
    """Another model in place of one that was trained: what it changed is as hard to put into a LoRA as can be."""
    return folder / f"{family}-trained.safetensors"


def _measured(folder: Path, work: str, family: str) -> dict[str, float]:
    """One work in a process of its own."""
    command = [sys.executable, "-m", "dreambooth.engine.bench.files", str(folder), work, family]
    said = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    return dict(json.loads(said.strip().splitlines()[-1]))


def _make(folder: Path, family: str) -> None:
    import torch

    from dreambooth.engine.bench.random_model import write_random

    folder.mkdir(parents=True, exist_ok=True)
    write_random(_file(folder, family), family, torch.float16)
    write_random(_trained(folder, family), family, torch.float16, seed=1)


def _create(folder: Path, family: str) -> None:
    since = time.monotonic_ns()
    project.create(Folders(folder / _MODELS), f"{family}-{since}", _file(folder, family))


def _load(folder: Path, family: str) -> None:
    import torch

    from dreambooth.engine import families

    families.load_file(_file(folder, family), dtype=torch.float16)


def _export(folder: Path, family: str) -> None:
    from dreambooth.engine.checkpoints import original
    from dreambooth.engine.checkpoints.source import open_model
    from dreambooth.engine.checkpoints.write import write

    name = next(path.name for path in (folder / _MODELS / "dreambooth").iterdir() if path.name.startswith(family))
    source = open_model(open_project(Folders(folder / _MODELS), name))
    write(folder / "out.safetensors", original.trained_entries(source, {}, family, half=True), {})


def _extract(folder: Path, family: str) -> None:
    import torch

    from dreambooth.engine.checkpoints import lora_extraction, weight_deltas
    from dreambooth.engine.checkpoints.source import open_source
    from dreambooth.engine.checkpoints.write import write_tensors
    from dreambooth.engine.export import is_in_loras

    base, trained = open_source(_file(folder, family)), open_source(_trained(folder, family))
    learned = weight_deltas.of_result(trained, base, base)
    how: dict[str, Any] = {"fits": is_in_loras, "dtype": torch.float16, "report": lambda done, total: None}
    extracted = lora_extraction.extract(base, learned, EXTRACTED_RANK, **how)
    write_tensors(folder / "out.safetensors", extracted.tensors, {})


def _onto(folder: Path, family: str) -> None:
    from dreambooth.engine.checkpoints import original, weight_deltas
    from dreambooth.engine.checkpoints.source import open_source
    from dreambooth.engine.checkpoints.write import write

    base, trained = open_source(_file(folder, family)), open_source(_trained(folder, family))
    changed = weight_deltas.added(base, weight_deltas.of_result(trained, base, base), 0.5)
    write(folder / "out.safetensors", original.trained_entries(base, changed, family, half=False), {})


def _copy(folder: Path, family: str) -> None:
    from safetensors.torch import load_file, save_file

    save_file(load_file(_file(folder, family)), folder / "out.safetensors")
    with open(folder / "out.safetensors", "rb") as file:  # our files are on the disk when we say so
        os.fsync(file.fileno())


WORKS: dict[str, Callable[[Path, str], None]] = {
    "create": _create,
    "load": _load,
    "export": _export,
    "export at a weight": _onto,
    "export as a LoRA": _extract,
    "plain copy": _copy,
}
_IMPORTS = {
    "load": "dreambooth.engine.families",
    "export": "dreambooth.engine.families",
    "export at a weight": "dreambooth.engine.families",
    "export as a LoRA": "dreambooth.engine.export",
    "plain copy": "safetensors.torch",
}


def main(folder: Path, work: str, family: str) -> None:
    if work in _IMPORTS:  # what every run pays once is not counted
        __import__(_IMPORTS[work])
    started = time.perf_counter()
    (_make if work == "make" else WORKS[work])(folder, family)
    seconds = time.perf_counter() - started
    (folder / "out.safetensors").unlink(missing_ok=True)
    print(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
