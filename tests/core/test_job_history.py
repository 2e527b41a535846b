"""What a job's events come to: the same whether they are read at once or as they come, and small however many."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dreambooth.core import job_history


def step(number: int, loss: float = 0.5) -> dict[str, Any]:
    return {
        "event": "step",
        "time": number,
        "step": number,
        "steps": 10_000,
        "images": number,
        "loss": loss,
        "rate": 1e-4,
        "steps_per_second": 2.0,
        "seconds_left": 9.5,
    }


def write(path: Path, *events: dict[str, Any], end: str = "\n") -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write("\n".join(json.dumps(event) for event in events) + end)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def test_no_file_is_a_new_job(path: Path) -> None:
    assert job_history.read(path).status == "new"


def test_only_what_was_added_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, {"event": "started", "time": 0}, *(step(n) for n in range(1, 101)))
    assert job_history.read(path).step["step"] == 100
    read: list[bytes] = []
    really = job_history.JobHistory._apply_line
    monkeypatch.setattr(
        job_history.JobHistory, "_apply_line", lambda self, line: (read.append(line), really(self, line))[1]
    )
    write(path, step(101), {"event": "paused", "time": 5})
    found = job_history.read(path)
    assert len(read) == 2
    assert (found.status, found.step["step"], found.offset) == ("paused", 101, path.stat().st_size)


def test_a_half_written_line_waits_for_its_other_half(path: Path) -> None:
    line = json.dumps(step(7))
    path.write_text(line[:40])
    assert job_history.read(path).step == {}
    path.write_text(line + "\n")
    assert job_history.read(path).step["step"] == 7


def test_a_job_made_anew_under_the_same_number_is_read_anew(path: Path) -> None:
    write(path, {"event": "started", "time": 1}, step(5))
    assert job_history.read(path).status == "lost"
    path.unlink()
    write(path, {"event": "started", "time": 2}, step(1), step(2), {"event": "done", "time": 3})
    found = job_history.read(path)
    assert (found.status, found.step["step"]) == ("done", 2)


def test_of_a_long_file_everything_but_steps_is_read_and_what_is_kept_is_small(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_history, "_READ_IN_FULL_BYTES", 20_000)
    events: list[dict[str, Any]] = [{"event": "started", "time": 0}]
    for number in range(1, 10_001):
        events.append(step(number, loss=number / 10_000))
        if number % 50 == 0:
            events.append({"event": "preview", "images": number, "paths": [f"{number}-0-0.png"]})
        if number % 1000 == 0:
            saved = {"event": "saved", "kind": "lora", "path": f"{number}.safetensors", "images": number, "bytes": 5}
            events.append(saved)
    write(path, *events)
    found = job_history.read(path)
    assert found.step["step"] == 10_000
    assert len(found.saved) == 10
    assert len(found.previews) <= 101 and {50, 10_000} <= set(found.previews)
    points = found.course.points
    assert len(points) <= 400 and points[-1][0] > 9_000
    assert points[0][1] < 0.1 and points[-1][1] > 0.9


def test_of_each_file_the_last_that_was_told_of_it_counts_until_it_is_removed(path: Path) -> None:
    told = {"kind": "lora", "bytes": 5, "path": "a"}
    exported = {**told, "event": "exported", "images": 2, "step": 2, "path": "b"}
    write(path, {"event": "saved", **told, "images": 1}, exported, {"event": "saved", **told, "images": 3})
    found = job_history.read(path)
    assert [one["images"] for one in (*found.saved, *found.exported)] == [3, 2]
    write(path, {"event": "removed", "path": "b"})
    assert not job_history.read(path).exported


def test_losses_of_the_subject_and_the_class_are_kept_beside_the_whole(path: Path) -> None:
    write(path, step(1, loss=0.5), {**step(2, loss=0.5), "subject_loss": 0.3, "prior_loss": 0.2},
          {**step(3), "prior_loss": "much"})  # fmt: skip
    kept = [(one.step, one.subject_loss, one.prior_loss) for one in job_history.read(path).course.points]
    assert kept == [(1, 0.5, 0.0), (2, 0.3, 0.2)], "an earlier version's, today's, and none of a damaged one"


def test_what_came_before_a_run_began_anew_is_forgotten(path: Path) -> None:
    """It had no state to go on from, so it tells of no resuming."""
    write(path, {"event": "started", "time": 0}, step(1), step(2), step(3), step(1, 0.1), step(2, 0.2))
    assert [point[:2] for point in job_history.read(path).course.points] == [(1, 0.1), (2, 0.2)]


def test_what_came_after_the_state_that_was_resumed_is_forgotten(path: Path) -> None:
    write(path, {"event": "started", "time": 0}, step(1), step(2), step(3), {"event": "started", "time": 9},
          {"event": "resumed", "step": 2}, step(3, 0.1))  # fmt: skip
    assert [point[:2] for point in job_history.read(path).course.points] == [(1, 0.5), (2, 0.5), (3, 0.1)]


@pytest.mark.parametrize(
    "damaged",
    [
        {"event": "saved", "kind": "lora", "path": None, "images": 1, "bytes": 5},
        {"event": "saved", "images": 1},
        {**step(1), "steps": 0},
        {**step(1), "step": True},
        {**step(1), "steps_per_second": None},
        {**step(1), "seconds_left": "soon"},
        {**step(1), "memory_bytes": [8]},
        {"event": "saved", "kind": "lora", "path": "a", "images": 1, "bytes": 5, "embeddings": ["a"]},
        {"event": "saved", "kind": "lora", "path": "a", "images": 1, "bytes": 5, "embeddings": {"sks": 3}},
        {"event": "saved", "kind": "lora", "path": "a", "images": 1, "bytes": 5, "step": "x"},
        {"event": "done", "path": ["a"]},
        {"event": "preview", "images": 5, "paths": ["a", 3]},
        {"event": "preview", "images": 5, "paths": ["a"], "prompts": 3},
        {"event": "picture", "path": "a\x00b"},
        {"event": "warning", "text": ["a"]},
    ],
)
def test_an_event_that_does_not_hold_what_its_kind_says_is_passed_over(path: Path, damaged: dict[str, Any]) -> None:
    write(path, {"event": "started", "time": 0}, damaged, {"event": "paused"})
    found = job_history.read(path)
    assert (found.status, found.step) == ("paused", {})
    assert not (found.saved or found.previews or found.pictures or found.warnings)


def test_the_last_start_state_and_result_are_kept(path: Path) -> None:
    events = [{"event": "started", "pid": 2}, {"event": "state", "step": 7}, {"event": "result", "ending": "done"}]
    write(path, {"event": "started", "pid": 1}, {"event": "state", "step": 5}, {"event": "paused"}, *events,
          {"event": "state", "step": "x"})  # fmt: skip
    assert list(job_history.read(path).last.values()) == events


def test_only_so_many_pictures_are_kept(path: Path) -> None:
    write(path, *({"event": "picture", "path": f"{number}.png"} for number in range(1500)))
    assert job_history.read(path).pictures == [f"{number}.png" for number in range(500, 1500)]


@pytest.mark.parametrize(("kept", "parsed_again"), [(80, 0), (70, 40)])
def test_looking_at_all_jobs_in_turn_finds_most_of_what_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int, parsed_again: int
) -> None:
    """As the queue does with every run of every model at each look; a few too many must not have all read anew."""
    monkeypatch.setattr(job_history, "_MOST_HISTORIES", kept)
    monkeypatch.setattr(job_history, "_histories", {})
    paths = [tmp_path / f"{number}.jsonl" for number in range(80)]
    for number, one in enumerate(paths):
        write(one, {"event": "started", "pid": number})
        job_history.read(one)
    parsed: list[Any] = []
    really = job_history.JobHistory._apply_line
    monkeypatch.setattr(
        job_history.JobHistory, "_apply_line", lambda known, line: (parsed.append(line), really(known, line))
    )
    for one in paths:
        assert job_history.read(one).status == "lost"
    assert len(parsed) <= parsed_again


def test_far_more_runs_are_kept_than_people_have() -> None:
    assert job_history._MOST_HISTORIES >= 1000
