"""The one form of a problem, wherever it is told."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from dreambooth.core.errors import Problem, UserError


@pytest.mark.parametrize(
    ("sentence", "where", "do"),
    [
        ("lora.rank: it is 0; set it to 1.", "lora.rank", "Set it to 1."),
        ("--port: it must be from 1 to 65535 (it is 0).", "--port", ""),
        ("/a folder/m.safetensors: it is damaged; copy it again.", "/a folder/m.safetensors", "Copy it again."),
        ("C:\\models\\m.safetensors: it is gone; put it back.", "C:\\models\\m.safetensors", "Put it back."),
        ("The model has no runs yet.", "", ""),
        ("It stopped (a; b).", "", ""),
    ],
)
def test_a_sentence_is_taken_apart(sentence: str, where: str, do: str) -> None:
    problem = Problem.of(sentence)
    assert (problem.where, problem.do, problem.sentence) == (where, do, sentence)
    assert Problem.read(problem.as_json()) == problem


def test_what_to_do_stands_in_the_sentence_once() -> None:
    assert Problem("It broke.", do="Try again.").sentence == "It broke. Try again."
    assert Problem("It broke; try again.", do="Try again.").sentence == "It broke; try again."


@pytest.mark.parametrize("said", [None, [], "text", {}, {"what": 3}])
def test_what_is_no_problem_is_refused(said: Any) -> None:
    with pytest.raises(ValueError, match="no problem"):
        Problem.read(said)


def test_several_problems_are_told_together_and_survive_the_way_between_processes() -> None:
    error = UserError(["lora.rank: it is 0; set it to 1.", Problem("It broke.", "/log.txt", "Try again.", "the end")])
    again = pickle.loads(pickle.dumps(error))
    assert again.as_json() == error.as_json()
    assert error.as_json()["problems"] == ["lora.rank: it is 0; set it to 1.", "It broke. Try again."]
    assert error.as_json()["errors"][1] == {
        "what": "It broke.",
        "where": "/log.txt",
        "do": "Try again.",
        "log": "the end",
    }
