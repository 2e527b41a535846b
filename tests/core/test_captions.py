"""The words that pictures are trained on: every row of docs/captions.md, and what holds for any caption."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreambooth.core import captions
from dreambooth.core.errors import UserError
from dreambooth.core.schema import from_flat
from dreambooth.core.settings.dataset import Captions, Concept

DOCS = Path(__file__).resolve().parents[2] / "docs" / "captions.md"

A_TAG = st.text("abcdefgh ", min_size=1, max_size=8).map(str.strip).filter(bool).map(lambda t: " ".join(t.split()))
TAGS = st.lists(A_TAG, min_size=1, max_size=8)
SEED = st.integers(0, 2**31 - 1)


def rows(heading: str) -> list[list[str]]:
    """The rows of the table under a heading of docs/captions.md."""
    part = DOCS.read_text(encoding="utf-8").split(f"## {heading}")[1].split("\n## ")[0]
    table = [line for line in part.splitlines() if line.startswith("|")][2:]
    cells = [line.replace("\\|", "\0").strip("|").split("|") for line in table]
    return [[cell.strip().strip("`").replace("\0", "|") for cell in row] for row in cells]


@pytest.mark.parametrize(("picture", "text", "words"), rows("What is taken for"))
def test_documented_captions(tmp_path: Path, picture: str, text: str, words: str) -> None:
    if text:
        (tmp_path / picture).with_suffix(".txt").write_text(text + "\n", encoding="utf-8")
    assert captions.file_words(tmp_path / picture) == words


@pytest.mark.parametrize(
    ("subject", "kind", "prompt", "caption", "yours", "of_the_class"), rows("The subject's and the class's word")
)
def test_documented_tokens(
    tmp_path: Path, subject: str, kind: str, prompt: str, caption: str, yours: str, of_the_class: str
) -> None:
    (tmp_path / "anna.caption").write_text(caption, encoding="utf-8")
    concept = Concept(instance_prompt=prompt, class_prompt=prompt, instance_token=subject, class_token=kind)
    assert captions.instance_words(concept, tmp_path / "anna.png") == yours
    assert captions.class_words(concept, caption) == of_the_class


@pytest.mark.parametrize(("options", "text", "expected"), rows("What varies from step to step"))
def test_documented_variants(options: str, text: str, expected: str) -> None:
    chosen = from_flat(Captions, dict(option.split("=") for option in options.split()))
    found = captions.variants(text.replace(" ⏎ ", "\n"), chosen, 7)
    assert sorted(found) == sorted(expected.split("<br>"))


@given(TAGS, st.integers(0, 9), st.integers(2, 9), SEED)
def test_shuffling_keeps_every_tag_and_those_in_front(some: list[str], keep: int, most: int, seed: int) -> None:
    options = Captions(shuffle_tags=True, keep_tags=keep, variants=most)
    found = captions.variants(", ".join(some), options, seed)
    assert 1 <= len(found) <= most
    assert len(set(found)) == len(found)
    for text in found:
        assert Counter(captions.tags(text)) == Counter(some)
        assert captions.tags(text)[:keep] == some[:keep]


@given(TAGS, SEED)
def test_variants_follow_from_the_seed(some: list[str], seed: int) -> None:
    text, options = ", ".join(some), Captions(shuffle_tags=True)
    assert captions.variants(text, options, seed) == captions.variants(text, options, seed)


def test_another_seed_shuffles_otherwise() -> None:
    text, options = ", ".join("abcdefgh"), Captions(shuffle_tags=True)
    assert set(captions.variants(text, options, 1)) != set(captions.variants(text, options, 2))


@given(st.text(max_size=40), st.booleans(), SEED)
def test_any_text_has_variants(text: str, shuffle: bool, seed: int) -> None:
    for one in captions.variants(text, Captions(shuffle_tags=shuffle), seed):
        assert one == one.strip(" ,")
        assert "\n" not in one


@pytest.mark.parametrize("count", [1, 2, 5])
def test_there_are_as_many_variants_as_are_asked_for(count: int) -> None:
    found = captions.variants("a star, red, large, alone", Captions(shuffle_tags=True, variants=count), 1)
    assert len(set(found)) == len(found) == count


@given(A_TAG, A_TAG, TAGS)
def test_the_subject_is_in_every_caption_and_never_in_a_class_prompt(subject: str, kind: str, some: list[str]) -> None:
    concept = Concept(instance_prompt="[filewords]", class_prompt="[filewords]")
    concept.instance_token, concept.class_token = f"sks{subject}", kind
    text = captions.instance_words(concept, Path(f"no such folder/{', '.join(some)}.png"))
    assert f"sks{subject}" in text
    of_the_class = captions.class_words(concept, text)
    assert f"sks{subject}" not in of_the_class
    assert kind in of_the_class


def test_every_variant_is_picked_about_as_often() -> None:
    counts = Counter(captions.pick(4, 3, place) for place in range(4000))
    assert all(900 < counts[number] < 1100 for number in range(4))
    assert [captions.pick(4, 3, p) for p in range(50)] == [captions.pick(4, 3, p) for p in range(50)]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_the_share_without_a_caption(share: float) -> None:
    dropped = sum(captions.is_dropped(share, 5, place) for place in range(4000))
    assert dropped == pytest.approx(4000 * share, abs=80)
    assert share not in (0.0, 1.0) or dropped == 4000 * share


def test_a_picture_that_nothing_is_said_about(tmp_path: Path) -> None:
    concept = Concept(instance_prompt="[filewords]")
    with pytest.raises(UserError, match=r"nothing says what it shows; write it into 0001\.txt"):
        captions.instance_words(concept, tmp_path / "0001.png")
    (tmp_path / "0001.txt").write_text("")
    assert captions.instance_words(concept, tmp_path / "0001.png") == ""


def test_a_caption_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match=r"a\.txt: the caption cannot be read as UTF-8 text"):
        captions.file_words(tmp_path / "a.png")
