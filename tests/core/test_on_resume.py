"""Which settings a run takes when it goes on, and what it says of the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dreambooth.core import job_list, project, schema
from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import MINIATURE, SUBJECT_PICTURES
from dreambooth.core.job_folder import Job
from dreambooth.core.project import Folders
from dreambooth.core.settings import Settings, on_resume, parse
from dreambooth.service import resume_run

NOW = schema.to_flat(parse({"concepts.0.instance_prompt": "sks star", "batching.train_batch_size": 4}))


def refused(given: dict[str, Any]) -> list[str]:
    with pytest.raises(UserError) as error:
        on_resume.changes(NOW, given)
    return error.value.problems


def test_every_setting_has_a_rule_and_every_rule_a_setting() -> None:
    keys = {leaf.key for leaf in schema.leaves(Settings)}
    for key in keys:
        assert isinstance(on_resume.why_not(key), str), key
    assert {key for key in on_resume.RULES if "." in key} <= keys
    assert {key for key in on_resume.RULES if "." not in key} == {key.split(".")[0] for key in keys}


def test_what_may_change_is_taken_and_what_is_the_same_is_not_named() -> None:
    given = {"intervals.num_train_epochs": "200", "previews.count": 3, "lora.rank": 16, "learning.scheduler": "cosine"}
    taken = {"intervals.num_train_epochs": 200, "previews.count": 3, "learning.scheduler": "cosine"}
    assert on_resume.changes(NOW, given) == taken
    assert on_resume.changes(NOW, {}) == {}


def test_what_must_stay_is_refused_by_name_and_with_the_reason() -> None:
    said = refused({"lora.rank": 4, "general.seed": 1, "previews.count": 3, "concepts.0.instance_prompt": "zwx star"})
    assert [one.split(":")[0] for one in said] == ["general.seed", "concepts.0.instance_prompt", "lora.rank"]
    assert all("as " in one and one.endswith("start a new run.") for one in said)
    assert refused({"concepts.1.instance_prompt": "another"})[0].startswith("concepts.1.")
    assert refused({"lora.rnak": 4}) == ["lora.rnak: there is no such setting. Did you mean lora.rank?"]
    assert refused({"intervals.epoch_pause_time": 5})[0].startswith("intervals.epoch_pause_frequency")


def test_differences_tell_what_could_be_taken_and_leave_the_rest(tmp_path: Path) -> None:
    own = parse({"concepts.0.instance_prompt": "zwx star", "concepts.1.instance_data_dir": str(tmp_path),
                 "intervals.num_train_epochs": 200, "batching.train_batch_size": 2,
                 "batching.gradient_accumulation_steps": 2})  # fmt: skip
    found = {one.key: one for one in on_resume.differences(NOW, schema.to_flat(own))}
    may = {key for key, one in found.items() if not one.why_not}
    assert may == {"intervals.num_train_epochs", "batching.train_batch_size", "batching.gradient_accumulation_steps"}
    prompt = found["concepts.0.instance_prompt"]
    assert (prompt.now, prompt.given) == ("sks star", "zwx star") and prompt.why_not
    folder = found["concepts.1.instance_data_dir"]  # may move by itself, but not bring a concept with it
    assert folder.now is None and folder.why_not
    back = {one.key: one for one in on_resume.differences(schema.to_flat(own), NOW)}
    assert back["concepts.1.instance_data_dir"].given is None and back["concepts.1.instance_data_dir"].why_not


def test_a_step_may_be_cut_into_smaller_batches_but_stays_as_large() -> None:
    smaller = {"batching.train_batch_size": 2, "batching.gradient_accumulation_steps": 2}
    assert on_resume.changes(NOW, smaller) == smaller
    assert refused({"batching.train_batch_size": 2})[0].startswith("batching.train_batch_size: it cannot change")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    folders = Folders(tmp_path)
    own = parse({**NOW, "concepts.0.instance_data_dir": str(SUBJECT_PICTURES)})
    made = job_list.new_run(folders, project.create(folders, "star", MINIATURE), own)
    made.report("started")
    made.report("paused")
    return made


def test_only_what_differs_is_written_down(job: Job, tmp_path: Path) -> None:
    assert resume_run.prepare(Folders(tmp_path), job, {**job.settings(), "intervals.max_train_steps": 50}) == {
        "intervals.max_train_steps": 50
    }
    assert json.loads((job.folder / "changes.json").read_text()) == {"intervals.max_train_steps": 50}
    assert resume_run.prepare(Folders(tmp_path), job, {"intervals.max_train_steps": 60}) == {
        "intervals.max_train_steps": 60
    }
    assert job.settings()["intervals.max_train_steps"] == 60


def test_a_run_that_cannot_go_on_is_not_changed(job: Job, tmp_path: Path) -> None:
    job.report("started")
    job.report("result", ending="done")
    with pytest.raises(UserError, match="has written its result already"):
        resume_run.prepare(Folders(tmp_path), job, {"intervals.max_train_steps": 50})
    assert resume_run.prepare(Folders(tmp_path), job, {}) == {}
    job.report("done")
    with pytest.raises(UserError, match="it is done"):
        resume_run.prepare(Folders(tmp_path), job, {"previews.count": 3})
    assert job.changes() == {}
