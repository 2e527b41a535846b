"""The words that pictures are trained on: every row of docs/captions.md, and what holds for any caption."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreambooth.core import captions, emphasis, tags
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
    assert sorted(set(found)) == sorted(expected.split("<br>"))


@pytest.mark.parametrize(("options", "text", "expected", "counting"), rows("Brackets and weights"))
def test_documented_weights(options: str, text: str, expected: str, counting: str) -> None:
    chosen = from_flat(Captions, dict(option.split("=") for option in options.split()))
    (whole,) = captions.variants(text, chosen, 7)
    found = emphasis.read(whole, weighted=chosen.weighted)
    assert [piece for piece, _ in found] == expected.split("`<br>`")
    assert [f"{weight:.3g}" for _, weight in found] == [f"{float(one):.3g}" for one in counting.split("<br>")]


@given(TAGS, st.integers(0, 9), st.integers(2, 9), SEED)
def test_shuffling_keeps_every_tag_and_those_in_front(some: list[str], keep: int, most: int, seed: int) -> None:
    options = Captions(shuffle_tags=True, keep_tags=keep, variants=most)
    found = captions.variants(", ".join(some), options, seed)
    assert 1 <= len(found) <= most
    assert len(set(found)) == len(found)
    for text in found:
        assert Counter(tags.parted(text)) == Counter(some)
        assert tags.parted(text)[:keep] == some[:keep]


@given(TAGS, TAGS, TAGS, SEED)
def test_what_stands_before_a_marker_stays_in_front_and_is_never_left_out(
    front: list[str], middle: list[str], back: list[str], seed: int
) -> None:
    """Whatever keep_tags says; and what stands behind a second one, at the end. The marker is in no text."""
    options = Captions(shuffle_tags=True, tag_dropout=0.5, keep_tags=9, keep_marker="|||")
    text = " ||| ".join(", ".join(some) for some in (front, middle, back))
    for one in captions.variants(text, options, seed):
        found = tags.parted(one)
        assert found[: len(front)] == front and found[-len(back) :] == back
        assert not Counter(found[len(front) : -len(back)]) - Counter(middle)
    for plain in (captions.steady(options), captions.of_class(options)):
        assert captions.variants(text, plain, seed) == (", ".join([*front, *middle, *back]),)


def test_without_a_marker_in_a_caption_so_many_tags_are_kept() -> None:
    options = Captions(tag_dropout=1.0, keep_tags=2, keep_marker="|||")
    assert set(captions.variants("a, b, c, d", options, 1)) == {"a, b"}
    assert set(captions.variants("a ||| b, c, d", options, 1)) == {"a"}


def test_tied_tags_go_together() -> None:
    options = Captions(shuffle_tags=True, tag_dropout=0.5, keep_tags=0, tie=";;;", variants=64)
    found = set(captions.variants("red hair;;;long hair, smile, hat", options, 3))
    assert len({"hair" in text for text in found}) == 2
    assert all("red hair, long hair" in text or "hair" not in text for text in found)


def test_each_tag_is_left_out_as_often_as_its_chance_says() -> None:
    """However few different texts there are; but none of those that never are."""
    options = Captions(tag_dropout=0.2, tag_dropout_except=r"Hat, Tifa \(FF7\)", variants=256, weighted=True)
    found = captions.variants(r"1girl, red hair, (hat:1.2), tifa \(ff7\), smile, alone", options, 5)
    counts = Counter(tag for text in found for tag in tags.parted(text, weighted=True))
    kept = ("1girl", "(hat:1.2)", r"tifa \(ff7\)")
    assert [counts.pop(tag) for tag in kept] == [256] * 3
    assert counts.keys() == {"red hair", "smile", "alone"}
    assert all(abs(count / 256 - 0.8) < 0.08 for count in counts.values())


def test_tags_that_are_weighed_together_are_one() -> None:
    text = r"1girl, (red hair, smile:1.2), [hat, (coat)], a \(b, c\), :(, d"
    found = ["1girl", "(red hair, smile:1.2)", "[hat, (coat)]", r"a \(b", r"c\)", ":(", "d"]
    assert tags.parted(text, weighted=True) == found
    assert len(tags.parted(text)) == 9


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("a dog", [("a dog", 1)]),
        ("a (red:1.3) dog", [("a ", 1), ("red", 1.3), (" dog", 1)]),
        ("((red)) [dog]", [("red", 1.21), (" ", 1), ("dog", 1 / 1.1)]),
        ("(a (red : 0.5) dog:2)", [("a ", 2), ("red ", 1), (" dog", 2)]),
        (r"tifa \(ff7\), \[x\] \\ \o/", [(r"tifa (ff7), [x] \ o/", 1)]),
        ("(never closed", [("never closed", 1.1)]),
        (":) a] b:1.2) c", [(":) a] b:1.2) c", 1)]),
        ("[a:b:1.2]", [("a:b:1.2", 1 / 1.1)]),
        ("(dog:-1)(cat:.5)(cow:1.)", [("dog", -1), ("cat", 0.5), ("cow", 1)]),
        ("(dog:1.2.3)", [("dog:1.2.3", 1.1)]),
        ("(" * 99 + "dog", [("dog", emphasis.MOST)]),
        ("()", [("", 1)]),
    ],
)
def test_weights_are_read_as_the_webui_reads_them(prompt: str, pieces: list[tuple[str, float]]) -> None:
    found = emphasis.read(prompt, weighted=True)
    assert [text for text, _ in found] == [text for text, _ in pieces]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in pieces])


@given(st.text(r"ab, ()[]\:1.2", max_size=30))
def test_what_is_read_as_it_stands_comes_to_the_webui_as_it_stands(text: str) -> None:
    plain = emphasis.bare(text.replace("\\", ""), weighted=False)
    assert emphasis.read(emphasis.for_webui(plain), weighted=True) == [(plain, 1.0)]
    assert emphasis.bare(text, weighted=True).count("\\") <= text.count("\\") // 2


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
    assert {captions.pick(2, 3, place) for place in range(50)} == {0, 1}


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
