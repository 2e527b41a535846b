"""What choices cost in time: the same training with one of them and without any, side by side.

Each training is a process of its own, with one thread of the CPU; all take turns, and what is told is the median
over the turns of each one's step to that of the plain training in the same turn. Without a GPU the model is the bundled
miniature; `large` is SD 1 at full size with random weights. On a CPU there is no bus to a card and no kernel of
its own, so that these ratios are a CPU's.
"""

from __future__ import annotations

import shutil
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import MINIATURE, SUBJECT_PICTURES
from dreambooth.core.job_folder import Job
from dreambooth.engine.bench.cases import Case
from dreambooth.engine.bench.measuring import Bench
from dreambooth.engine.bench.versions import versions
from dreambooth.engine.process.listener import asked_to_end

TURNS = 3
_CHECKPOINTED = {"batching.gradient_checkpointing": True}
_IN_BACKWARD = {"memory.step_in_backward": True}
_STREAMED = {**_CHECKPOINTED, "memory.unet_weights": "streamed"}
_UNTRACED = {"tuning.trace_steps": False}
_BF16 = {"memory.bf16_weights": True}
_EMBEDDING = {"embedding.enabled": True, "embedding.ratio": 1.0, "concepts.0.instance_token": "sks"}
_OF_CLASS = {"concepts.0.class_prompt": "a photo of a star", "concepts.0.class_data_dir": str(SUBJECT_PICTURES)}


@dataclass(frozen=True)
class Choice:
    """Something that is chosen, by the changes to the settings."""

    name: str
    changes: dict[str, Any] = field(default_factory=dict)


PLAIN = Choice("plain")
_BOTH = (
    PLAIN,
    Choice("every step done by PyTorch (trace_steps off)", _UNTRACED),
    *(
        Choice(f"checkpointed_share {share:g}", {**_CHECKPOINTED, "memory.checkpointed_share": share})
        for share in (0.25, 0.5, 0.75, 1.0)
    ),
    Choice("8-bit AdamW", {"optimizer.name": "adamw_8bit"}),
)
CHOICES = {
    "lora": (
        *_BOTH,
        *(Choice(f"{kind}, checkpointed", {**_CHECKPOINTED, "memory.unet_weights": kind}) for kind in ("int8", "nf4")),
        Choice("streamed, checkpointed", _STREAMED),
        *(Choice(name, {"lora.kind": name.lower()}) for name in ("LoHa", "LoKr")),
        Choice("an embedding, the whole run", _EMBEDDING),
        Choice("class pictures", {**_OF_CLASS, "concepts.0.class_mode": "folder"}),
        Choice("the class kept by prediction", {**_OF_CLASS, "concepts.0.class_mode": "prediction"}),
    ),
    "full": (
        *_BOTH,
        Choice("Adafactor", {"optimizer.name": "adafactor"}),
        Choice("CAME", {"optimizer.name": "came"}),
        Choice("weights in bf16", _BF16),
        Choice("step in the backward pass", _IN_BACKWARD),
        Choice("step in the backward pass, trace_steps off", {**_IN_BACKWARD, **_UNTRACED}),
        Choice("step in the backward pass, checkpointed", {**_IN_BACKWARD, **_CHECKPOINTED}),
        Choice("streamed, step in the backward pass, checkpointed", {**_IN_BACKWARD, **_STREAMED}),
        Choice(
            "streamed, step in the backward pass, checkpointed, trace_steps off",
            {**_IN_BACKWARD, **_STREAMED, **_UNTRACED},
        ),
    ),
}
_SHARED = Choice(
    "two batches added up, shared by two processes",
    {"batching.gradient_accumulation_steps": 2, "batching.num_processes": 2},
)
_STEPS, _FEW_STEPS = 45, 4  # a full-size model on a CPU takes some seconds for each


def measure(job: Job) -> dict[str, Any]:
    """Measures in the folder that job.json names, and removes it. Returns a row for each method and choice."""
    asked = job.read()
    folder = Path(asked["out"])
    methods = [asked["method"]] if asked.get("method") else list(CHOICES)
    choices = {method: CHOICES[method] + ((_SHARED,) if _has_two_devices() else ()) for method in methods}
    turns = TURNS if _case("lora", asked).steps > _FEW_STEPS else 1
    total = turns * sum(map(len, choices.values())) + 1
    taken: dict[tuple[str, str], list[dict[str, Any]]] = {}
    try:
        bench, done = Bench(job, folder, asked), 0
        for _ in range(turns):
            for method in methods:
                for choice in choices[method]:
                    _stage(job, f"{method}: {choice.name}", done, total)
                    found = bench.ours(_case(method, asked), "choices_run", choice.changes)
                    taken.setdefault((method, choice.name), []).append(found)
                    done += 1
        _stage(job, "decoding in tiles", done, total)
        case = _case("full", asked)
        decoded = bench.measured("choices_run", case, model=str(_decoder(bench, case)))
        rows = [_row(method, choice.name, taken) for method in methods for choice in choices[method]]
        return {"rows": rows, "tiles": _ratios(decoded["tiled"], decoded["sliced"]), "versions": versions()}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _decoder(bench: Bench, case: Case) -> Path:
    """The model whose VAE decodes: without a card always the miniature, as one picture of full size takes minutes."""
    import torch

    return bench.source(case.family) if torch.cuda.is_available() else MINIATURE


def _has_two_devices() -> bool:
    """Whether two processes find a GPU each here; without any, a core of the CPU."""
    from dreambooth.engine import hardware

    return hardware.alike(hardware.here())[0] > 1


def _stage(job: Job, name: str, done: int, total: int) -> None:
    if asked_to_end(job):
        raise UserError("Stopped as asked; nothing was measured to the end.")
    job.report("stage", name=name, done=done, total=total)


def _case(method: str, asked: dict[str, Any]) -> Case:
    """Larger than what is usual for the miniature, so that it is the work that is timed."""
    if not asked.get("large"):
        return Case("sd1", method, 1, 128, _STEPS, rank=16)
    import torch

    has_card = torch.cuda.is_available()
    return Case("sd1", method, 1, 512 if has_card else 256, _STEPS if has_card else _FEW_STEPS, rank=16)


def _row(method: str, name: str, taken: dict[tuple[str, str], list[dict[str, Any]]]) -> dict[str, Any]:
    own, plain = taken[method, name], taken[method, PLAIN.name]
    pairs = [_ratios(_times(a), _times(b)) for a, b in zip(own, plain)]
    return {
        "method": method,
        "choice": name,
        "step_seconds": statistics.median(one["seconds"] for one in own),
        "step_cpu_seconds": statistics.median(one["cpu_seconds"] for one in own),
        "peak_bytes": int(statistics.median(one["device_peak_bytes"] or one["peak_bytes"] for one in own)),
        "to_plain": {key: statistics.median(one[key] for one in pairs) for key in pairs[0]},
        "between": [min(one["cpu"] for one in pairs), max(one["cpu"] for one in pairs)],
    }


def _times(one: dict[str, Any]) -> list[float]:
    return [one["seconds"], one["cpu_seconds"]]


def _ratios(times: list[float], plain: list[float]) -> dict[str, float]:
    """Of the clock and of CPU time."""
    return {"clock": times[0] / plain[0], "cpu": times[1] / plain[1]}
