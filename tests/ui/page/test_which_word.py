"""Which word to take for a subject: what is looked at, what is warned of, and the answer on the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dreambooth.core import job_list, project
from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import MINIATURE
from dreambooth.core.project import Folders
from dreambooth.core.settings import parse, to_json
from dreambooth.core.settings.dataset import Concept
from dreambooth.service import subject_words
from dreambooth.ui.page import jobs
from dreambooth.ui.page.short_job_view import errand_view

ANSWER: dict[str, Any] = {
    "prompt": "red star",
    "measured_in": "a photo of a red star",
    "tokens": 2,
    "read_length": 75,
    "chunks": ["red star"],
    "words": [
        {"word": "red", "tokens": ["red"], "strength": 0.2, "known": True},
        {"word": "star", "tokens": ["sta", "r"], "strength": 0.4, "known": True},
    ],
    "rare": [{"word": "hta", "strength": 0.01}],
}


@pytest.mark.parametrize(
    ("concept", "looked_at", "own"),
    [
        ({"instance_token": "sks", "class_token": "dog", "instance_prompt": "[filewords]"}, "sks dog", ["sks"]),
        ({"instance_prompt": "a photo of sks dog", "class_prompt": "a photo of a dog"}, "a photo of sks dog", ["sks"]),
        ({"instance_prompt": "a photo of Sks dog"}, "a photo of Sks dog", []),
        ({"instance_prompt": "[filewords]", "class_prompt": "[filewords]"}, "", []),
    ],
)
def test_the_subjects_own_words_are_told_from_the_others(
    concept: dict[str, Any], looked_at: str, own: list[str]
) -> None:
    assert subject_words.prompt_of(Concept(**concept)) == looked_at
    chosen = parse({f"concepts.0.{key}": value for key, value in concept.items()})
    assert subject_words.own_words(chosen, looked_at.split()) == own


def shown(folders: Folders, **own: Any) -> str:
    """The view of an answer about a star, of a model with such settings."""
    flat = {f"concepts.0.{key}": value for key, value in own.items()}
    opened = project.create(folders, "star", MINIATURE, flat)
    job = job_list.create(opened.errands, {"kind": "tokens", "model": "star"}, to_json(parse(flat)))
    job.report("started", kind="tokens")
    job.report("done", **ANSWER)
    return errand_view(folders, "star", "tokens")


def test_a_subjects_word_that_means_something_is_warned_of_with_another(tmp_path: Path) -> None:
    said = shown(Folders(tmp_path), instance_prompt="a red star", class_prompt="a star")
    assert "red means something to this model already" in said and "Take a rarer word, such as hta." in said
    assert "star means something" not in said, "what it is may well be known"
    assert "<td>star</td><td>2 tokens: sta r</td><td>40.0%</td><td>means something</td>" in said
    assert "change its pictures least: hta 1.0%" in said


def test_without_words_and_without_a_prompt_it_says_what_to_write(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    opened = project.create(folders, "star", MINIATURE)
    with pytest.raises(UserError, match="Words: there are none, and no Instance Prompt either"):
        jobs.look_at_words(None, opened, 0, " ")  # type: ignore[arg-type]
