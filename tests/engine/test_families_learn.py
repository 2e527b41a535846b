"""A subject is really learned, by the miniature of each family (what it does to the class is in test_training.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from dreambooth.core import project, settings
from dreambooth.core.install_paths import MINIATURES, SUBJECT_PICTURES
from dreambooth.core.project import Folders
from dreambooth.engine import worker
from dreambooth.engine.miniature import measure
from dreambooth.service import launcher

COUNT = 6
CHOSEN = {
    "concepts.0.instance_data_dir": str(SUBJECT_PICTURES),
    "concepts.0.instance_prompt": "a photo of [filewords]",
    "batching.train_batch_size": 4,
    "batching.class_batch_size": COUNT,
    "intervals.num_train_epochs": 100,
    "intervals.save_preview_every": 0,
    "learning.learning_rate": 4e-4,
    "learning.lora_learning_rate": 3e-3,
    "learning.scheduler": "cosine",
    "previews.prompts": measure.SUBJECT_PROMPT,
    "previews.count": COUNT,
    "previews.guidance_scale": 5.0,
}


@pytest.mark.parametrize(("family", "method"), [("sd1", "lora"), ("sd2", "full"), ("sdxl", "full")])
def test_a_subject_is_learned(family: str, method: str, tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    star = project.create(folders, "star", MINIATURES[family])
    chosen = settings.parse({**star.settings(), **CHOSEN, "general.method": method})
    job = launcher.new_run(folders, star, chosen)
    assert worker.run(job) == "done"
    before, after = [], []
    for path in sorted(job.previews.glob("*.png")):
        with Image.open(path) as picture:
            (before if path.name.startswith("00000000") else after).append(measure.likeness(picture))
    assert len(before) == len(after) == COUNT
    assert sum(after) / COUNT > sum(before) / COUNT + 0.15, (before, after)
