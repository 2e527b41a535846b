"""Going on with other settings: a longer run is the one that was longer from the beginning."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dreambooth.core import picture_files
from dreambooth.core.errors import UserError
from dreambooth.core.focal_point import FocalPoint
from dreambooth.core.install_paths import SUBJECT_PICTURES
from dreambooth.core.job_folder import Job
from dreambooth.core.project import Project
from dreambooth.engine import worker
from dreambooth.engine.run import hooks
from dreambooth.service import resume_run
from dreambooth.service.pictures import write_point
from tests.engine.runs import LORA, folders, new_run, output, same, saved, tiny_project, told, train

SHORTER = {**LORA, "lora.dropout": 0.2, "intervals.max_train_steps": 4, "tuning.use_ema": True}
LONGER = {"intervals.max_train_steps": 7}


@pytest.fixture(scope="module")
def star(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return tiny_project(tmp_path_factory.mktemp("changed"))


def paused(star: Project, monkeypatch: pytest.MonkeyPatch, step: int = 3, **changes: Any) -> Job:
    job = new_run(star, **{**SHORTER, **changes})
    with monkeypatch.context() as patch:
        patch.setattr(hooks.RunHooks, "requests", lambda own: {"pause"} if own.session.step == step else set())
        assert worker.run(job) == "paused"
    return job


def test_resuming_with_more_steps_is_the_run_that_had_them_from_the_beginning(
    star: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = paused(star, monkeypatch)
    often = {"intervals.save_preview_every_steps": 2, "previews.count": 1, "previews.steps": 1}
    assert resume_run.prepare(folders(star), job, {**LONGER, **often}) == {**LONGER, **often}
    assert worker.run(job) == "done"
    assert told(job, "step")[-1]["step"] == 7
    assert told(job, "preview")
    assert same(output(job), output(train(star, **{**SHORTER, **LONGER})))
    assert not same(output(job), output(train(star, **SHORTER)))
    assert not told(job, "warning")


def test_a_schedule_that_goes_by_the_length_is_said(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    falling = {"learning.scheduler": "cosine", "tuning.text_encoder_ratio": 0.5}
    job = paused(star, monkeypatch, **falling)
    resume_run.prepare(folders(star), job, LONGER)
    assert worker.run(job) == "done"
    (warning,) = told(job, "warning")
    assert "learning.scheduler and tuning.text_encoder_ratio go by it" in warning["text"]
    rates = [event["rate"] for event in told(train(star, **{**SHORTER, **LONGER, **falling}), "step")]
    assert told(job, "step")[-1]["rate"] == rates[-1]


def test_a_length_that_is_passed_already_is_refused_and_another_one_taken(
    star: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = paused(star, monkeypatch)
    job.change({"intervals.max_train_steps": 2})
    with pytest.raises(UserError, match=r"intervals\.max_train_steps: the run has made 3 steps already"):
        worker.run(job)
    job.report("failed", problems=["..."], refused=True)
    resume_run.prepare(folders(star), job, LONGER)
    assert worker.run(job) == "done"
    assert told(job, "step")[-1]["step"] == 7


@pytest.mark.parametrize("changed", ["a picture", "a caption", "a mask", "a crop", "nothing"])
def test_what_is_learned_from_may_change_and_that_is_said(
    star: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    pictures = shutil.copytree(SUBJECT_PICTURES, tmp_path / "pictures")
    first = min(pictures.glob("*.png"))
    wide = max(pictures.glob("*.png"))
    Image.new("RGB", (96, 64), "blue").save(wide)
    mask = picture_files.masks_of(first)[0]
    Image.new("L", (64, 64), 255).save(mask)
    own = {"concepts.0.instance_data_dir": str(pictures), "concepts.0.instance_prompt": "[filewords]"}
    job = paused(star, monkeypatch, **own, **{"objective.masked": True})
    if changed == "a picture":
        Image.new("RGB", (64, 64), "green").save(first)
    elif changed == "a caption":
        first.with_suffix(".txt").write_text("something else", encoding="utf-8")
    elif changed == "a mask":
        Image.new("L", (64, 64), 200).save(mask)
    elif changed == "a crop":
        write_point(wide, FocalPoint(0, 0.5))
    assert worker.run(job) == "done"
    said = ["have changed since the last state" in event["text"] for event in told(job, "warning")]
    assert said == ([] if changed == "nothing" else [True])


def test_what_was_written_with_other_settings_is_written_again(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A result that has the place of this moment but not its settings is not taken for it."""
    job = paused(star, monkeypatch, **{"intervals.save_model_every_steps": 2})
    assert len(saved(job)) == 1
    resume_run.prepare(folders(star), job, {"learning.lora_learning_rate": 1e-3})
    (job.state / "000000003").rename(job.folder / "lost")  # so that it begins anew
    assert worker.run(job) == "done"
    before, again, last = saved(job)
    assert len({before, again, last}) == 3
    assert before.exists()
