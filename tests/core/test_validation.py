"""When a run was best."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreambooth.core import job_history
from dreambooth.core.validation import Measure, best, could_tell, measures_past, thinned


def measures(*held_out: float, learned: tuple[float, ...] = ()) -> list[Measure]:
    """The first of them before the run."""
    of_learned = learned or (0.5,) * len(held_out)
    return [Measure(10 * n, 10 * n, value, other, None) for n, (value, other) in enumerate(zip(held_out, of_learned))]


@pytest.mark.parametrize(
    ("held_out", "learned", "number"),
    [
        ((0, 0.1, 0.3, 0.5), (), 3),
        ((0, 0.3, 0.5, 0.2, 0.1), (), 2),
        ((0, 0.3, 0.5, 0.45), (0, 0.3, 0.5, 0.6), 3),  # what is learned gains more than the others lose
        ((0, 0.3, 0.5, 0.35), (0, 0.3, 0.5, 0.6), 2),  # and less
        ((0, -0.3, -0.1, -0.2), (), 2),
        ((0, 0.4), (), 1),
    ],
)
def test_the_best_is_where_both_are_highest_together(
    held_out: tuple[float, ...], learned: tuple[float, ...], number: int
) -> None:
    found = best(measures(*held_out, learned=learned))
    assert found is not None
    assert found.step == 10 * number
    assert measures_past(measures(*held_out, learned=learned)) == len(held_out) - 1 - number


def test_nothing_is_best_before_the_first_step() -> None:
    assert best([]) is None
    assert best(measures(0.0)) is None
    assert measures_past(measures(0.0)) == 0


@given(st.lists(st.floats(-2, 1), min_size=1, max_size=30))
def test_no_measure_is_better_than_the_best(values: list[float]) -> None:
    found = best(measures(0.0, *values))
    assert found is not None
    assert found.images
    assert found.held_out == pytest.approx(max(values), abs=1e-9)


def told(folder: Path, *events: dict[str, object]) -> job_history.JobHistory:
    path = folder / "events.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in events), encoding="utf-8")
    return job_history.read(path)


def measured(step: int, held_out: object, **more: object) -> dict[str, object]:
    return {"event": "measured", "step": step, "images": step, "held_out": held_out, "learned": 0.5, **more}


def test_a_story_tells_of_measures_until_a_run_goes_on_from_before_them(tmp_path: Path) -> None:
    events = [measured(0, 0.0), measured(10, 0.2, drift=0.1), measured(20, 0.4), measured(30, 0.1)]
    read = told(tmp_path, *events)
    assert [one.held_out for one in read.measures] == [0.0, 0.2, 0.4, 0.1]
    assert (read.measures[1].drift, read.measures[2].drift) == (0.1, None)
    assert read.best == read.measures[2]
    again = told(tmp_path, *events, {"event": "resumed", "step": 10}, measured(20, 0.3))
    assert [(one.step, one.held_out) for one in again.measures] == [(0, 0.0), (10, 0.2), (20, 0.3)]


def test_damaged_measures_are_none(tmp_path: Path) -> None:
    damaged = [measured(10, "much"), measured(10, None), {**measured(10, 0.1), "images": "ten"}]
    assert told(tmp_path, *damaged).measures == []
    assert told(tmp_path, measured(10, 0.1, drift="far")).measures[0].drift is None


def test_what_was_removed_is_no_result_any_more(tmp_path: Path) -> None:
    saved = [{"event": "saved", "kind": "lora", "path": f"/a/{n}.safetensors", "bytes": 1, "images": n} for n in (1, 2)]
    read = told(tmp_path, *saved, {"event": "removed", "path": "/a/1.safetensors"}, {"event": "removed", "path": 3})
    assert [one["images"] for one in read.saved] == [2]


@pytest.mark.parametrize(
    ("held_out", "pictures", "could"),
    [([0], [7], False), ([0], [8], True), ([1], [20], False), ([0, 0], [3, 9], True), ([0, 1], [9, 9], False)],
)
def test_a_run_could_tell_where_a_picture_can_be_spared(held_out: list[int], pictures: list[int], could: bool) -> None:
    assert could_tell(held_out, pictures) is could


@pytest.mark.parametrize(
    ("best", "expected"),
    [(None, [0, 20, 50, 80, 100]), (30, [0, 30, 50, 80, 100]), (10, [0, 10, 50, 80, 100]), (80, [0, 20, 50, 80, 100]),
     (90, [0, 20, 50, 90, 100]), (35, [0, 20, 50, 80, 100])],
)  # fmt: skip
def test_the_best_stays_among_the_moments_that_are_shown(best: int | None, expected: list[int]) -> None:
    assert thinned(range(0, 101, 10), 5, best) == expected
    assert thinned([0, 10, 20], 5, best) == [0, 10, 20]
