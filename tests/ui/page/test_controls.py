"""Every setting goes from the file to the page and back, and no control of the page is anybody else's."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from dreambooth.core import project
from dreambooth.core.schema import Leaf, from_flat, leaves, to_flat
from dreambooth.core.settings import Settings
from dreambooth.core.settings.dataset import Concept
from dreambooth.host.standalone import Standalone
from dreambooth.ui.page import actions, build
from dreambooth.ui.page.controls import Form, elem_id, make, to_page
from dreambooth.ui.page.page import Page
from tests.ui.page.laid_out import laid_out

LEAVES = list(leaves(Settings))


def another(leaf: Leaf) -> Any:
    """A valid value that is not the default."""
    if leaf.choices:
        return next(choice for choice in leaf.choices if choice != leaf.default)
    if leaf.kind is bool:
        return not leaf.default
    if leaf.kind is str:
        return "word"
    step = 64 if leaf.key in ("general.resolution", "pictures.bucket_min_side", "pictures.bucket_max_side") else 1
    if leaf.kind is int:
        return leaf.default - step if leaf.default == leaf.spec.max else leaf.default + step
    low, high = leaf.spec.min or 0, leaf.spec.max
    return (low + (high if high is not None else 2.0)) / 2


def through_the_browser(control: Any, value: Any) -> Any:
    """What Python gets back of a value that it gave a control, over the control's own conversions."""
    shown = control.postprocess(value)
    return control.preprocess(getattr(shown, "root", shown))


@pytest.fixture(scope="module")
def controls() -> dict[str, Any]:
    with gr.Blocks():
        return {leaf.key: make(leaf) for leaf in LEAVES}


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.key)
def test_a_value_survives_its_control(controls: dict[str, Any], leaf: Leaf) -> None:
    for value in (leaf.default, another(leaf)):
        came_back = through_the_browser(controls[leaf.key], to_page(leaf, value))
        flat = {leaf.key.replace(".N.", ".0."): came_back}
        assert to_flat(from_flat(Settings, flat))[next(iter(flat))] == value


@pytest.fixture
def page(tmp_path: Path) -> Page:
    return laid_out(tmp_path / "models")


def test_the_page_shows_every_setting_and_nothing_else(page: Page) -> None:
    assert set(page.form.controls) == {leaf.key for leaf in LEAVES}


def test_what_the_page_shows_is_what_it_saves(page: Page) -> None:
    opened = project.open_project(page.host.folders(), "star")
    changed = Settings()
    changed.concepts = [Concept(class_prompt="one"), Concept(class_prompt="two", repeats=3)]
    changed.lora.rank, changed.learning.learning_rate, changed.tuning.max_token_length = 7, 3e-7, 225
    project.write_settings(opened, to_flat(changed))
    before = opened.settings()
    for row in (0, 1):
        shown = page.show("star", row)
        values = {control: shown[control] for control in page.form.controls.values()}
        values |= {page.model: "star", page.row: row}
        page.save(values)
        assert opened.settings() == before


def test_an_emptied_number_is_told_and_nothing_is_written(page: Page) -> None:
    opened = project.open_project(page.host.folders(), "star")
    before = opened.settings()
    shown = page.show("star")
    values = {control: shown[control] for control in page.form.controls.values()}
    values |= {page.model: "star", page.row: 0, page.form.controls["general.seed"]: None}
    assert "Seed: it is empty" in page.save(values)[page.message]
    assert opened.settings() == before


def test_nothing_is_kept_in_the_webuis_own_file(tmp_path: Path) -> None:
    blocks = build(Standalone(str(tmp_path)))
    assert blocks.blocks
    assert all(block.do_not_save_to_config for block in blocks.blocks.values())


def test_every_component_has_an_id_of_ours_and_of_its_own(tmp_path: Path) -> None:
    blocks = build(Standalone(str(tmp_path))).blocks.values()
    ids = [block.elem_id for block in blocks if not isinstance(block, gr.Blocks) and block.get_block_name() != "form"]
    assert all(one and one.startswith("db_") for one in ids), ids
    assert [one for one, count in Counter(ids).items() if count > 1] == []
    assert {elem_id(leaf.key) for leaf in LEAVES} <= set(ids)
    # The WebUI's keyboard shortcuts press what ends like this.
    pressed = [block.elem_id for block in blocks if isinstance(block, gr.Button)]
    assert not [one for one in pressed if one.endswith(("_generate", "_interrupt", "_skip"))]


def test_the_form_keeps_its_rows_apart() -> None:
    form = Form()
    with gr.Blocks():
        form.add_all(leaf for leaf in LEAVES if leaf.key.startswith("concepts."))
    values = dict.fromkeys(form.controls.values())
    assert set(form.read(values, 3)) == {
        leaf.key.replace(".N.", ".3.") for leaf in leaves(Settings) if ".N." in leaf.key
    }


def test_a_concept_is_called_by_its_words_or_its_folder() -> None:
    long = "a photo of sks dog beside the river at night"
    named = [
        {"instance_prompt": "a photo of sks dog"},
        {"instance_prompt": long},
        {"instance_prompt": "[filewords]", "instance_data_dir": "/pictures/10_sks dog"},
        {"instance_prompt": "a photo of [filewords]", "instance_data_dir": "/models/star/pictures/1"},
        {"instance_data_dir": "/pictures/dog"},
        {"instance_prompt": " ", "instance_data_dir": " "},
    ]
    empty = {"instance_prompt": "", "instance_data_dir": ""}
    flat = {f"concepts.{row}.{key}": value for row, one in enumerate(named) for key, value in {**empty, **one}.items()}
    names = actions.concept_names(flat)
    assert names == [
        "Concept 1 · a photo of sks dog",
        "Concept 2 · a photo of sks dog beside t…",
        "Concept 3 · 10_sks dog",
        "Concept 4 · a photo of [filewords]",
        "Concept 5 · dog",
        "Concept 6",
    ]
    assert [actions.row_of(name) for name in names] == [0, 1, 2, 3, 4, 5]
