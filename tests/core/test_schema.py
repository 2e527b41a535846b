from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreambooth.core import reference, schema
from dreambooth.core.errors import UserError
from dreambooth.core.settings import Settings, parse, read_file, to_json

DOCS = Path(__file__).resolve().parents[2] / "docs" / "settings.md"


def problems(flat: dict[str, object]) -> list[str]:
    with pytest.raises(UserError) as caught:
        parse(flat)
    return caught.value.problems


def test_defaults_pass_their_own_checks() -> None:
    assert parse(schema.to_flat(Settings())) == Settings()


def test_all_problems_are_reported_at_once() -> None:
    found = problems({"lora.rank": 0, "lora.rnak": 8, "general.method": "lycoris", "learning.learning_rate": "fast"})
    assert len(found) == 4
    assert any("lora.rank: 0 is below the minimum, 1." in p for p in found)
    assert any("lora.rnak: there is no such setting. Did you mean lora.rank?" in p for p in found)


def test_the_references_n_is_no_number() -> None:
    """`concepts.N.repeats` stands in docs/settings.md, and somebody copies it."""
    assert problems({"concepts.N.repeats": 2}) == [
        "concepts.N.repeats: there is no such setting. Did you mean concepts.0.repeats?"
    ]
    assert problems({"tuning.use_ema": "maybe"}) == ["tuning.use_ema: 'maybe' is not on or off."]


@pytest.mark.parametrize("key", ["previews.negative_prompt", "concepts.0.class_negative_prompt"])
def test_a_caption_cannot_stand_where_no_picture_is_meant(key: str) -> None:
    assert problems({key: "blurry, [filewords]"})[0].startswith(f"{key}: [filewords] stands for a picture's caption")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lora.rank", "8.5"),
        ("lora.rank", None),
        ("lora.rank", True),
        ("lora.alpha", "nan"),
        ("lora.alpha", float("inf")),
        ("lora.rank", "9" * 400),
        ("tuning.use_ema", "maybe"),
        ("concepts.0.class_prompt", 3),
        ("concepts.1.class_prompt", "a dog"),
        ("general.resolution", 100),
        ("saving.custom_model_name", "../x"),
    ],
)
def test_a_bad_value_is_refused_by_name(key: str, value: object) -> None:
    found = problems({key: value})
    assert len(found) == 1
    assert found[0].startswith(key.rsplit(".", 1)[0].split(".")[0])


def test_text_and_numbers_give_the_same_settings() -> None:
    assert parse({"lora.rank": "8", "tuning.use_ema": "on"}) == parse({"lora.rank": 8.0, "tuning.use_ema": True})


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ('"/photos/my dog"', "/photos/my dog"),
        (" '~/dog'\n", "~/dog"),
        ("file:///photos/my%20dog", "/photos/my dog"),
        ("file:///C:/photos", "C:/photos"),
        ('"', '"'),
        ("/photos/a 'dog'", "/photos/a 'dog'"),
    ],
)
def test_a_path_as_a_file_manager_copies_it_is_understood(written: str, meant: str) -> None:
    assert parse({"concepts.0.instance_data_dir": written}).concepts[0].instance_data_dir == meant


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)


@given(st.integers(1, 4), TEXT, st.integers(1, 512), st.floats(0, 1))
def test_settings_go_to_a_file_and_back(rows: int, prompt: str, rank: int, rate: float) -> None:
    flat: dict[str, object] = {"lora.rank": rank, "learning.learning_rate": rate}
    flat.update({f"concepts.{row}.instance_prompt": prompt for row in range(rows)})
    settings = parse(flat)
    assert parse(json.loads(to_json(settings))) == settings
    assert len(settings.concepts) == rows


@given(
    st.dictionaries(st.text(max_size=12), st.one_of(st.none(), st.integers(), st.text(max_size=5), st.lists(st.none())))
)
def test_nonsense_is_refused_with_sentences(flat: dict[str, object]) -> None:
    try:
        parse(flat)
    except UserError as error:
        assert error.problems


def test_nested_and_dotted_files_mean_the_same(tmp_path: Path) -> None:
    (tmp_path / "nested.json").write_text('{"lora": {"rank": 8}, "concepts": [{"class_prompt": "a dog"}]}')
    (tmp_path / "dotted.json").write_text('{"lora.rank": 8, "concepts.0.class_prompt": "a dog"}')
    (nested, lists), (dotted, lists_dotted) = (read_file(tmp_path / f"{name}.json") for name in ("nested", "dotted"))
    assert parse(nested) == parse(dotted)
    assert (lists, lists_dotted) == (True, False)


@pytest.mark.parametrize("text", ["", "[]", "{", '"x"', "\udcff"])
def test_a_settings_file_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "settings.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"settings\.json"):
        read_file(path)


def test_every_setting_explains_itself() -> None:
    labels = [leaf.spec.label for leaf in schema.leaves(Settings)]
    assert all(leaf.spec.label and leaf.spec.help.endswith(".") for leaf in schema.leaves(Settings))
    assert len(labels) == len(set(labels))


def test_the_reference_is_up_to_date() -> None:
    assert DOCS.read_text(encoding="utf-8") == reference.markdown(Settings), (
        "run: python -m dreambooth settings > docs/settings.md"
    )


def test_the_json_schema_knows_every_setting() -> None:
    properties = reference.json_schema(Settings)["properties"]
    assert set(properties) == {leaf.key for leaf in schema.leaves(Settings)}
    assert properties["lora.rank"]["minimum"] == 1
