from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dreambooth.core import job_list, project
from dreambooth.core.errors import UserError
from dreambooth.core.files import atomic, lock
from dreambooth.core.install_paths import MINIATURE
from dreambooth.core.job_folder import Job
from dreambooth.core.project import Folders


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return job_list.create(
        tmp_path / "NAME" / "runs", {"kind": "train", "model": "NAME", "models": str(tmp_path)}, "{}"
    )


def test_runs_are_numbered_in_turn(tmp_path: Path, job: Job) -> None:
    assert (job.name, job_list.create(job.folder.parent, {}, "{}").name) == ("NAME/1", "NAME/2")


def test_a_folder_is_a_job_only_where_its_name_is_a_number(tmp_path: Path) -> None:
    folders = Folders(tmp_path / "models")
    opened = project.create(folders, "star", MINIATURE)
    job = job_list.create(opened.runs, {"kind": "train"}, "{}")
    for name in ("²", "a", "0002 copy", "①"):
        (job.folder.parent / name).mkdir()
        (job.folder.parent / name / "job.json").write_text('{"kind": "train"}')
        (job.state / name).mkdir(parents=True)
    assert job_list.runs(opened) == [job] and job.states() == []
    assert job_list.create(opened.runs, {"kind": "train"}, "{}").folder.name == "0002"
    with pytest.raises(UserError, match="There is no run"):
        job_list.find(folders, "star/²")


def test_a_half_written_event_is_left_for_the_next_read(job: Job) -> None:
    job.report("started")
    with open(job.folder / "events.jsonl", "a") as file:
        file.write('{"event": "st')
    events, offset = job.events()
    assert [event["event"] for event in events] == ["started"]
    with open(job.folder / "events.jsonl", "a") as file:
        file.write('ep", "step": 1}\n')
    assert [event["event"] for event in job.events(offset)[0]] == ["step"]


def test_many_events_come_in_parts_of_whole_lines(job: Job) -> None:
    for number in range(100):
        job.report("step", step=number)
    parts: list[list[int]] = []
    offset = 0
    while True:
        events, offset = job.events(offset, most_bytes=500)
        if not events:
            break
        parts.append([event["step"] for event in events])
    assert [step for part in parts for step in part] == list(range(100))
    assert 5 < len(parts) < 20


def test_a_line_cut_by_a_crash_does_not_hide_what_follows(job: Job) -> None:
    (job.folder / "events.jsonl").write_text('{"event": "st\n{"event": "done"}\n')
    assert [event["event"] for event in job.events()[0]] == ["done"]


def test_requests_are_seen_and_cleared(job: Job) -> None:
    assert job.requests() == set()
    job.request("pause")
    assert job.requests() == {"pause"}
    job.clear_request("pause")
    job.clear_request("pause")
    assert job.requests() == set()


def test_the_status_follows_the_folder(job: Job) -> None:
    assert job.status() == "new"
    job.report("started")
    assert job.status() == "lost"
    job.report("paused")
    assert job.status() == "paused"
    job.report("started")
    assert job.status() == "lost"
    held = job.hold()
    assert held
    assert job.status() == "running"
    assert job.hold() is None
    held.close()
    job.report("done")
    assert job.status() == "done"


def test_a_dead_holder_frees_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "alive"
    code = (
        "from pathlib import Path; from dreambooth.core.files import lock; "
        f"held = lock.acquire(Path({str(path)!r})); print(1, flush=True); input()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.PIPE)
    assert process.stdout and process.stdout.readline()
    assert lock.is_held(path)
    process.kill()
    process.wait()
    assert not lock.is_held(path)


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    atomic.write_text(path, "old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        atomic.write_text(path, "new")
    assert path.read_text() == "old"


def test_what_is_being_read_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, replace, refused = tmp_path / "file.json", os.replace, []

    def refuse_twice(source: Path, target: Path) -> None:
        if len(refused) < 2:
            refused.append(target)
            raise PermissionError(13, "Access is denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse_twice)
    monkeypatch.setattr(atomic, "_PATIENCE_SECONDS", 60)
    atomic.write_text(path, "new")
    assert path.read_text() == "new" and refused == [path, path]


@pytest.mark.skipif(os.name != "nt", reason="other systems let a file that is open be replaced and removed")
def test_windows_replaces_and_removes_what_was_open_for_a_moment(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    for change in (lambda: atomic.write_text(path, "new"), lambda: atomic.remove(path)):
        atomic.write_text(path, "old")
        file = open(path)  # noqa: SIM115  (closed by the timer)
        threading.Timer(0.3, file.close).start()
        change()
        assert file.closed
    assert not path.exists()
