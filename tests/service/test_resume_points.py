"""Going on from an earlier state: the later ones go to the trash, and nothing else is touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dreambooth.core import project, run
from dreambooth.core.errors import UserError
from dreambooth.core.layout import MINIATURE
from dreambooth.core.project import Folders
from dreambooth.core.settings import Settings
from dreambooth.service import runs


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    made = Folders(tmp_path / "models")
    project.create(made, "star", MINIATURE)
    return made


def paused(folders: Folders, *more: str) -> run.Job:
    job = run.new_run(folders, project.open_project(folders, "star"), Settings())
    for step in (10, 20, 30):
        (job.state / f"{step:09}").mkdir(parents=True)
    lines = [{"event": "started"}, *({"event": one} for one in more), {"event": "paused"}]
    (job.folder / "events.jsonl").write_text("".join(json.dumps({**line, "time": 0}) + "\n" for line in lines))
    return job


def test_later_states_are_moved_to_the_trash(folders: Folders) -> None:
    job = paused(folders)
    assert runs.states(job) == [10, 20, 30]
    runs.go_back(folders, job, 10)
    assert runs.states(job) == [10]
    assert sorted(path.name for path in folders.trash.iterdir()) == [
        "star run 1 state 000000020",
        "star run 1 state 000000030",
    ]
    (job.state / "000000020").mkdir()
    runs.go_back(folders, job, 10)  # once more: nothing in the trash is overwritten
    assert len(list(folders.trash.iterdir())) == 3


def test_the_newest_state_moves_nothing(folders: Folders) -> None:
    job = paused(folders)
    runs.go_back(folders, job, 30)
    assert runs.states(job) == [10, 20, 30]


def test_what_cannot_be_is_refused_and_moves_nothing(folders: Folders) -> None:
    job = paused(folders)
    with pytest.raises(UserError, match=r"no state after step 15 \(there: 10, 20, 30\)"):
        runs.go_back(folders, job, 15)
    written = paused(folders, "result")
    with pytest.raises(UserError, match="written its result already"):
        runs.go_back(folders, written, 10)
    assert runs.states(job) == runs.states(written) == [10, 20, 30]
