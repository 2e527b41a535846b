"""What `tokens` says of a prompt, on the miniature: it knows red and stars, and has never read of sks."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreambooth.core import project, settings
from dreambooth.core.install_paths import MINIATURE
from dreambooth.core.project import Folders
from dreambooth.engine.prompts import chunking, tokens
from dreambooth.service import launcher

COMMA = 267


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folders = Folders(tmp_path_factory.mktemp("tokens"))
    star = project.create(folders, "star", MINIATURE)

    def asked(prompt: str, candidates: int = 0) -> dict[str, Any]:
        chosen = settings.parse(star.settings())
        job = launcher.new_errand(folders, star, "tokens", chosen, prompt=prompt, candidates=candidates)
        return tokens.run(job)

    return asked


def test_a_word_that_the_model_knows_changes_more_than_one_that_it_does_not(ask: Any) -> None:
    known, unknown = ask("red star")["words"][0], ask("sks star")["words"][0]
    assert known["strength"] > 3 * unknown["strength"] > 0


def test_a_word_that_means_something_is_told_from_a_rare_one(ask: Any) -> None:
    assert [word["known"] for word in ask("red star", candidates=6)["words"]] == [True, True]
    assert [word["known"] for word in ask("sks star", candidates=6)["words"]] == [False, True]
    assert ask("red star")["words"][0]["known"] is None, "nothing to compare it with"


def test_words_and_their_tokens(ask: Any) -> None:
    said = ask("sks  mauve-ish star")
    assert [word["word"] for word in said["words"]] == ["sks", "mauve-ish", "star"]
    assert [word["tokens"] for word in said["words"]] == [["sks"], ["mau", "ve", "-", "ish"], ["star"]]
    assert (said["tokens"], said["chunks"]) == (6, ["sks mauve - ish star"])
    assert said["measured_in"] == "a photo of a sks mauve-ish star"


def test_a_long_prompt_is_shown_in_its_pieces(ask: Any) -> None:
    said = ask(" ".join(["star"] * 80))
    assert said["tokens"] == 80
    assert [len(chunk.split()) for chunk in said["chunks"]] == [75, 5]
    assert [word["strength"] is None for word in said["words"]] == [False] * 20 + [True] * 60


def test_each_word_is_measured_where_it_stands(ask: Any) -> None:
    words = ask("a red star on a blue background")["words"]
    assert words[1]["strength"] > 0.02
    assert words[0]["strength"] != words[4]["strength"]


def test_rare_words_are_single_tokens_in_the_order_of_their_effect(ask: Any) -> None:
    rare = ask("red star", candidates=5)["rare"]
    strengths = [one["strength"] for one in rare]
    assert len(rare) == 5
    assert strengths == sorted(strengths)
    assert all(len(ask(one["word"])["words"][0]["tokens"]) == 1 for one in rare[:2])
    assert strengths[0] < ask("red star")["words"][0]["strength"] / 5


@given(st.lists(st.sampled_from([COMMA, 1, 2, 3]), max_size=300))
def test_pieces_hold_every_token_in_order(numbers: list[int]) -> None:
    pieces = chunking.split(numbers, COMMA)
    assert [number for piece in pieces for number in piece] == numbers
    assert all(len(piece) <= chunking.LENGTH for piece in pieces)


@pytest.mark.parametrize(
    ("comma_at", "first"),
    [(None, 75), (74, 75), (60, 61), (55, 56), (54, 75), (0, 75)],
)
def test_a_piece_ends_behind_a_comma_that_is_near(comma_at: int | None, first: int) -> None:
    numbers = [COMMA if place == comma_at else 1 for place in range(80)]
    assert [len(piece) for piece in chunking.split(numbers, COMMA)] == [first, 80 - first]


WORDS = {1000: 3, 1003: 2, 1005: 80}  # the last is longer than a piece


@given(st.lists(st.sampled_from([[COMMA], [1], [2], *(list(range(n, n + size)) for n, size in WORDS.items())])))
def test_a_learned_word_is_never_cut_in_two(units: list[list[int]]) -> None:
    numbers = [number for unit in units for number in unit]
    pieces = chunking.split(numbers, COMMA, WORDS)
    assert [number for piece in pieces for number in piece] == numbers
    assert all(len(piece) <= chunking.LENGTH for piece in pieces)
    read = chunking.truncate(numbers, WORDS)
    assert read == numbers[: len(read)] and len(read) <= chunking.LENGTH
    for piece in [*pieces, read]:
        for n in (1000, 1003):
            whole = list(range(n, n + WORDS[n]))
            starts = [at for at, number in enumerate(piece) if number == n]
            assert all(piece[at : at + WORDS[n]] == whole for at in starts)
            assert sum(number in whole for number in piece) == len(starts) * WORDS[n]


def test_a_learned_word_that_does_not_fit_begins_the_next_piece() -> None:
    """As in A1111 and Forge: also behind a comma, as the piece before it is not full."""
    for before in ([1] * 74, [1] * 70 + [COMMA] + [2] * 3):
        assert chunking.split([*before, 1000, 1001, 1002, 1], COMMA, WORDS) == [before, [1000, 1001, 1002, 1]]
    assert chunking.split([*[1] * 72, 1000, 1001, 1002, 1], COMMA, WORDS) == [[*[1] * 72, 1000, 1001, 1002], [1]]
