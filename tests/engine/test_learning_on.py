"""Learning on from what a run has written: the next run begins with what was learned, whatever was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dreambooth.core.errors import UserError
from dreambooth.core.project import Project, names, open_project
from dreambooth.core.settings import parse
from dreambooth.engine import worker
from dreambooth.service import continue_from, launcher, models
from tests.engine.runs import LORA, folders, output, same, saved, tiny_project, train

RESTING = {"learning.learning_rate": 0.0, "learning.lora_learning_rate": 0.0}
OWN = {"pictures.hflip": True, "lora.blocks": "MID"}


@pytest.fixture
def star(tmp_path: Path) -> Project:
    return tiny_project(tmp_path)


def next_run(made: Project, **changes: Any) -> dict[str, torch.Tensor]:
    """What the next run with the model's own settings writes."""
    chosen = parse({**made.settings(), "previews.count": 0, "intervals.num_train_epochs": 1, **changes})
    job = launcher.new_run(folders(made), made, chosen)
    assert worker.run(job) == "done"
    return output(job)


def test_a_lora_is_where_the_next_run_begins(star: Project) -> None:
    job = train(star, **LORA)
    shown = {key: value for key, value in job.settings().items() if key.startswith("concepts.")}
    models.write_settings(star, {**star.settings(), **shown, **OWN, "tuning.mixed_precision": "no"})
    file = str(saved(job)[-1])
    answer = continue_from.learn_on(folders(star), star, file)
    assert answer == {"model": "sd1", "done": f"The next run of sd1 learns on from {Path(file).name}."}
    assert star.settings()["pictures.hflip"] is True
    assert same(next_run(star, **RESTING, **{"saving.half_model": False}), output(job))


def test_of_a_checkpoint_a_new_model_is_made_that_keeps_settings_and_pictures(star: Project) -> None:
    job = train(star)
    kept = star.folder / "pictures" / "0"
    kept.mkdir(parents=True)
    (kept / "a.png").write_bytes(b"a picture")
    made = [continue_from.learn_on(folders(star), star, str(saved(job)[-1]))["model"] for _ in range(2)]
    assert made == ["sd1-2", "sd1-3"]
    copy = open_project(folders(star), "sd1-2")
    assert copy.source == saved(job)[-1] and (copy.folder / "pictures" / "0" / "a.png").exists()
    assert copy.about["family"] == star.about["family"] and copy.settings() == star.settings()
    again = {key: value for key, value in job.settings().items() if key != "saving.half_model"}
    learned = next_run(copy, **{**again, **RESTING, "saving.half_model": False})
    assert same(learned, output(job))


def test_what_no_run_has_written_is_refused_and_nothing_is_changed(star: Project) -> None:
    job = train(star)
    file, before = saved(job)[-1], star.settings()
    for other in (star.source, file.with_name("gone.safetensors")):
        with pytest.raises(UserError, match="no run of sd1 has written this file"):
            continue_from.learn_on(folders(star), star, str(other))
    file.write_bytes(b"damaged")
    with pytest.raises(UserError):
        continue_from.learn_on(folders(star), star, str(file))
    assert names(folders(star)) == ["sd1"] and star.settings() == before
