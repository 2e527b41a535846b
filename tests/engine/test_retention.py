"""Results that pile up: of those that a run writes at its intervals only the newest stay, where that is wanted."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from dreambooth.core import result_files
from dreambooth.core.install_paths import SUBJECT_PICTURES
from dreambooth.core.job_folder import Job
from dreambooth.core.project import Folders, Project, open_project
from dreambooth.engine import worker
from dreambooth.engine.run import retention
from dreambooth.engine.training.validation import Validation
from dreambooth.service import resume_run, runs
from tests.conftest import needs_links
from tests.engine.runs import LORA, folders, new_run, saved, tiny_project, told, train
from tests.engine.test_faults import finished, start
from tests.engine.test_validation import HELD, goes, kept

EACH: dict[str, Any] = {**LORA, "intervals.num_train_epochs": 6, "intervals.save_model_every": 1}  # five pictures each
ONE: dict[str, Any] = {**EACH, "intervals.results_kept": 1}
SAFE = {"intervals.save_state_every_steps": 1}


@pytest.fixture
def star(tmp_path: Path) -> Project:
    return tiny_project(tmp_path)


def files(made: Project) -> set[str]:
    """What lies where results go."""
    return {path.name for place in (folders(made).loras, folders(made).checkpoints, folders(made).embeddings)
            if place.is_dir() for path in place.iterdir()}  # fmt: skip


def after_first(monkeypatch: pytest.MonkeyPatch, do: Callable[[Path], object]) -> None:
    """Has a person do something with the first result of a run as soon as it is written."""
    tidy = retention.tidy

    def then(work: Any, images: int) -> None:
        tidy(work, images)
        if images == 5:
            do(saved(work.job)[0])

    monkeypatch.setattr(retention, "tidy", then)


def test_the_newest_the_last_and_what_a_person_asked_for_stay(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = iter([{"save"}])
    own = lambda hooks: next(asked, set()) if hooks.session.step == 2 else set()  # noqa: E731
    monkeypatch.setattr(worker.RunHooks, "requests", own)
    job = train(star, **EACH, **{"intervals.results_kept": 2})
    assert [event["images"] for event in told(job, "saved")] == [5, 10, 10, 15, 20, 25, 30]
    assert [path.name for path in saved(job)] == [f"sd1_{one}.safetensors" for one in ("10-2", "20", "25", "30")]
    assert files(star) == {path.name for path in saved(job)}
    assert [Path(event["path"]).stem for event in told(job, "removed")] == ["sd1_5", "sd1_10", "sd1_15"]


@needs_links
def test_a_drive_of_results_that_does_not_answer_ends_no_run(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one of the network that is gone: even to ask whether a file is there is an error."""

    def lose(result: Path) -> None:
        result.parent.rename(result.parent.with_name("gone"))
        result.parent.symlink_to("x" * 300)

    after_first(monkeypatch, lose)
    job = new_run(star, **ONE)
    assert worker.run(job) == "paused"
    assert [event["images"] for event in told(job, "saved")] == [5]
    assert all("cannot be written" in event["text"] for event in told(job, "warning"))
    assert job.states() == [6]
    assert runs.outputs(star) == [] and runs.weights(star, "", base=False) is None


@pytest.mark.parametrize(
    ("course", "more", "stay"),
    [
        ((0.1, 0.3, 0.2, 0.25, 0.1, 0.0), {}, [8, 20, 24]),
        ((0.1, 0.3, 0.2, 0.5, 0.1, 0.0), {}, [16, 20, 24]),  # what was the best goes when it is that no more
        pytest.param(
            (0.1, 0.3, 0.2, 0.25, 0.1, 0.0), {"saving.keep_best": False}, [20, 24], marks=pytest.mark.thorough
        ),
        # The last was written at an interval:
        pytest.param((0.1, 0.3, 0.2, 0.1, 0.0, 0.0), {"intervals.patience": 2}, [8, 16], marks=pytest.mark.thorough),
    ],
)
def test_the_best_stays(
    star: Project, monkeypatch: pytest.MonkeyPatch, course: tuple[float, ...], more: dict[str, Any], stay: list[int]
) -> None:
    monkeypatch.setattr(Validation, "measure", goes(*course))
    assert kept(train(star, **{**ONE, **HELD, **more})) == stay


def changed(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4] + b"mine")
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime + 60))


def linked(path: Path) -> None:
    path.symlink_to(shutil.move(path, path.parents[2] / "mine.safetensors"))


def shown(path: Path) -> None:
    path.with_suffix(".preview.png").touch()


def start_of_another(path: Path) -> None:
    """Of a run that began with it and rests."""
    made = open_project(Folders(path.parents[1]), "sd1")
    other = new_run(made, **LORA, **{"lora.start_file": str(path)})
    other.report("started")
    other.report("paused")


@pytest.mark.parametrize("do", [changed, pytest.param(linked, marks=needs_links), shown, start_of_another])
def test_what_a_person_had_a_hand_in_stays(
    star: Project, monkeypatch: pytest.MonkeyPatch, do: Callable[[Path], object]
) -> None:
    after_first(monkeypatch, do)
    assert kept(train(star, **ONE)) == [5, 25, 30]


def test_what_is_moved_away_counts_no_more_and_is_left_alone(
    star: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    after_first(monkeypatch, lambda path: shutil.move(path, tmp_path / "mine.safetensors"))
    assert kept(train(star, **ONE)) == [25, 30]
    assert (tmp_path / "mine.safetensors").is_file()


def test_the_yaml_beside_a_checkpoint_goes_with_it(tmp_path: Path) -> None:
    made = tiny_project(tmp_path, "sd2")
    train(made, **{**ONE, "general.method": "full", "intervals.num_train_epochs": 4})
    assert files(made) == {f"sd2_{images}.{ending}" for images in (15, 20) for ending in ("safetensors", "yaml")}


def test_the_embedding_beside_a_lora_goes_with_it(star: Project) -> None:
    word = {"embedding.enabled": True, "concepts.0.instance_token": "sks", "intervals.num_train_epochs": 4}
    job = train(star, **{**ONE, **word})
    assert kept(job) == [15, 20]
    assert {path.stem for path in folders(star).embeddings.iterdir()} == {"sd1_15", "sd1_20"}


def test_the_text_of_imagic_goes_with_its_result(star: Project, tmp_path: Path) -> None:
    picture = tmp_path / "one"
    picture.mkdir()
    shutil.copy(SUBJECT_PICTURES / "1.png", picture)
    edit = {"imagic.enabled": True, "imagic.embedding_steps": 1, "concepts.0.instance_data_dir": str(picture)}
    train(star, **{**ONE, **edit, "batching.train_batch_size": 1, "intervals.num_train_epochs": 4})
    texts = {path.name.removesuffix(".safetensors") for path in (star.folder / "embeddings").iterdir()}
    assert texts == files(star) == {"sd1_3.safetensors", "sd1_4.safetensors"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.skipif(torch.cuda.is_available(), reason="a process that has used a GPU cannot be forked")
@pytest.mark.parametrize("moment", ["before the older goes", "before that is said"])
def test_a_kill_beside_a_removal_loses_nothing_and_leaves_nothing(star: Project, moment: str) -> None:
    job, take_away, report = new_run(star, **ONE, **SAFE), result_files.take_away, Job.report

    def end(*_: object) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    def killed(self: Job, event: str, **fields: Any) -> None:
        report(self, event, **fields) if event != "removed" else end()

    goes = moment.endswith("goes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*((result_files, "take_away", end) if goes else (Job, "report", killed)))
        assert not finished(start(job))
    assert result_files.take_away is take_away
    there = {"sd1_5.safetensors", "sd1_10.safetensors"} if goes else {"sd1_10.safetensors"}
    assert files(star) == there, "the newer is there before the older goes"
    assert worker.run(job) == "done"
    assert files(star) == {"sd1_25.safetensors", "sd1_30.safetensors"}


def test_a_run_that_goes_back_keeps_what_it_had_come_to(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not write an earlier moment once more in the place of a later one."""
    job = new_run(star, **ONE, **SAFE, **{"intervals.states_kept": 9})
    with monkeypatch.context() as patch:
        patch.setattr(worker.RunHooks, "requests", lambda hooks: {"pause"} if hooks.session.step == 4 else set())
        assert worker.run(job) == "paused"
    assert kept(job) == [20]
    resume_run.prepare(folders(star), job, {}, 1)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert worker.run(job) == "done"
    assert [event["images"] for event in told(job, "saved")] == [5, 10, 15, 20, 25, 30]
    assert kept(job) == [25, 30]


@pytest.mark.thorough
def test_a_changed_number_holds_from_where_a_run_goes_on(star: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    job = new_run(star, **EACH, **SAFE)
    with monkeypatch.context() as patch:
        patch.setattr(worker.RunHooks, "requests", lambda hooks: {"pause"} if hooks.session.step == 4 else set())
        assert worker.run(job) == "paused"
    assert kept(job) == [5, 10, 15, 20]
    resume_run.prepare(folders(star), job, {"intervals.results_kept": 1})
    AcceleratorState._reset_state(reset_partial_state=True)
    assert worker.run(job) == "done"
    assert kept(job) == [25, 30]


def test_events_that_name_another_file_take_none_away(star: Project, tmp_path: Path) -> None:
    precious, job = tmp_path / "precious.safetensors", new_run(star, **ONE)
    precious.write_bytes(b"precious")
    named = {"kind": "lora", "path": str(precious), "bytes": 8, "images": 1, "files": result_files.marks([precious])}
    job.report("saved", **named, on_the_way=True)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert worker.run(job) == "done"
    assert precious.exists() and kept(job) == [1, 25, 30]
