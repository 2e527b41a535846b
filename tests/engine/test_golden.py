"""The first losses of a run of each family, as they were when they were last looked at.

A change of the code that moves them changes what is trained. Where that is meant, write them anew with
`python -m tests.engine.test_golden` and say why.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState

from dreambooth.core import project
from dreambooth.core.install_paths import MINIATURE, SUBJECT_PICTURES
from dreambooth.core.project import Folders
from dreambooth.core.settings import parse
from dreambooth.engine import worker
from dreambooth.engine.training import step_metrics
from dreambooth.service import launcher
from tests.engine import tiny

GOLDEN = Path(__file__).with_name("golden.json")
STEPS = 8
# SD 1 is the miniature's; its tiny model with random weights doubles every rounding of a CPU at each step.
KINDS = ("miniature", *(kind for kind in tiny.FAMILIES if kind != "sd1"))
METHODS = {
    "full": {"general.method": "full", "learning.learning_rate": 1e-4},
    "lora": {"learning.lora_learning_rate": 1e-2},
}
SETTINGS = {
    "concepts.0.instance_data_dir": str(SUBJECT_PICTURES),
    "concepts.0.instance_prompt": "a photo of sks star",
    "concepts.0.class_prompt": "a photo of a star",
    "concepts.0.class_mode": "folder",
    "concepts.0.class_data_dir": str(SUBJECT_PICTURES),
    "intervals.max_train_steps": STEPS,
    "batching.train_batch_size": 2,
    "batching.gradient_accumulation_steps": 2,
    "learning.scheduler": "cosine",
    "learning.warmup": 0.25,
    "tuning.text_encoder_ratio": 0.5,
    "tuning.mixed_precision": "no",
    "previews.count": 0,
}


def losses(kind: str, method: str, folder: Path) -> list[float]:
    folder.mkdir(exist_ok=True)
    source = MINIATURE if kind == "miniature" else tiny.write_original(folder / f"{kind}.safetensors", kind)
    folders = Folders(folder / "models")
    made = project.create(folders, kind, source)
    job = launcher.new_run(folders, made, parse({**SETTINGS, **METHODS[method]}))
    AcceleratorState._reset_state(reset_partial_state=True)
    assert worker.run(job) == "done"
    return [event["loss"] for event in job.events()[0] if event["event"] == "step"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_losses_are_as_they_were(
    kind: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_metrics, "REPORT_SECONDS", -1.0)  # after each step
    golden: dict[str, Any] = json.loads(GOLDEN.read_text())
    assert losses(kind, method, tmp_path) == pytest.approx(golden[kind][method], rel=1e-3)


if __name__ == "__main__":
    step_metrics.REPORT_SECONDS = -1.0
    found: dict[str, dict[str, list[float]]] = {}
    for one in KINDS:
        with tempfile.TemporaryDirectory() as place:
            found[one] = {method: losses(one, method, Path(place) / method) for method in METHODS}
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
