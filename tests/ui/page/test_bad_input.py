"""Bad input in every field: one sentence about each, where it was written, and nothing that was right is lost."""

from __future__ import annotations

import html
import json
import math
import re
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from dreambooth.core import captions, job_list, project
from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import MINIATURE, SUBJECT_PICTURES
from dreambooth.core.project import Folders, Project, open_project
from dreambooth.core.schema import Leaf, leaves
from dreambooth.core.settings import Settings
from dreambooth.service import short_jobs
from dreambooth.ui.page import actions, jobs
from dreambooth.ui.page.controls import elem_id, make
from dreambooth.ui.page.export import AS_IT_IS, ONTO
from dreambooth.ui.page.fragments import problem_list
from dreambooth.ui.page.generate import BASE
from dreambooth.ui.page.page import Page
from tests.ui.page.conftest import Server
from tests.ui.page.hands import Hands
from tests.ui.page.laid_out import laid_out

LEAVES = list(leaves(Settings))
NO_PATHS = ["a\x00b", "\ud800", "x" * 5000, "x" * 300, "~nobody-has-this-name/x"]


def bad_values(leaf: Leaf) -> list[Any]:
    """What a control, a script or a broken browser could send for a setting."""
    if leaf.choices:
        return [None, "nothing", 7, [], "x" * 5000]
    if leaf.kind is bool:
        return [None, "maybe", 3, []]
    if leaf.kind is str:
        return [["a"], 7, *(NO_PATHS if leaf.spec.path else NO_PATHS[:2])]
    beyond = [leaf.spec.min - 1] if leaf.spec.min is not None else []
    beyond += [leaf.spec.max + 1] if leaf.spec.max is not None else []
    part = [leaf.default + 0.5] if leaf.kind is int else []
    return [None, "", math.nan, math.inf, "many", "1e999", [], True, *beyond, *part]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return laid_out(tmp_path_factory.mktemp("bad") / "models")


def opened(page: Page) -> Project:
    return open_project(page.host.folders(), "star")


def shown(page: Page) -> dict[Any, Any]:
    everything = page.show("star")
    return {
        **{control: everything[control] for control in page.form.controls.values()},
        page.model: "star",
        page.row: 0,
    }


def saved(page: Page, values: dict[Any, Any]) -> list[str]:
    """Saves a draft; returns the problems that the page tells."""
    told = re.search(r"data-db-problems='?\"?([^\"']*)", page.save(values)[page.message])
    assert told
    return list(json.loads(html.unescape(told[1])))


def test_a_file_that_may_not_be_written_is_a_sentence_too(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise PermissionError(13, "Permission denied", "/models/star/settings.json")

    monkeypatch.setattr(page, "opened", refuse)
    told = page.telling_problems(page.save)({page.model: "star"})
    assert "Permission denied: &#x27;/models/star/settings.json&#x27;" in told[page.message]


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.key)
def test_a_bad_value_is_one_sentence_and_the_rest_is_saved(page: Page, leaf: Leaf) -> None:
    before, right = opened(page).settings(), shown(page)
    key = leaf.key.replace(".N.", ".0.")
    other = "previews.negative_prompt" if key != "previews.negative_prompt" else "captions.prefix"
    for number, bad in enumerate(bad_values(leaf)):
        words = f"kept {number}"
        said = saved(page, {**right, page.form.controls[leaf.key]: bad, page.form.controls[other]: words})
        assert len(said) == 1
        assert said[0].startswith(f"{key}: ")
        assert said[0].endswith(".")
        assert len(said[0]) < 300
        assert opened(page).settings() == {**before, other: words}


def test_settings_that_do_not_go_together_are_saved_only_when_they_do(page: Page) -> None:
    before, right = opened(page).settings(), shown(page)
    control = page.form.controls
    said = saved(page, {**right, control["optimizer.name"]: "prodigy"})
    assert [one.split(":")[0] for one in said] == ["learning.lora_learning_rate"]
    assert opened(page).settings() == before
    page.save({**right, control["optimizer.name"]: "prodigy", control["learning.lora_learning_rate"]: 1})
    assert opened(page).settings()["optimizer.name"] == "prodigy"
    page.save(right)


def test_a_preset_that_wants_more_is_applied_and_says_what(page: Page) -> None:
    before, now = opened(page).settings(), opened(page)
    after, changed, wanted = actions.apply_preset(now, {"concepts.0.class_prompt": ""}, "person")
    assert (after["concepts.0.num_class_images_per"], after["intervals.num_train_epochs"]) == (5, 150)
    assert changed["intervals.num_train_epochs"] == before["intervals.num_train_epochs"]
    assert [one.split(":")[0] for one in wanted] == ["concepts.0.class_prompt"]
    assert now.settings()["intervals.num_train_epochs"] == 150
    told = problem_list(wanted)
    assert "Class Images Per Instance Image asks for class pictures" in told and "num_class_images_per" not in told
    actions.save(now, before)


def test_a_prompt_that_asks_for_a_caption_is_refused_where_there_is_no_picture(page: Page) -> None:
    for key in ("prompt", "negative"):
        with pytest.raises(UserError) as told:
            short_jobs.drawing(opened(page), {"prompt": "a star", "base": True, key: "[filewords], in snow"})
        assert told.value.problems == [f"{key}: {captions.NO_CAPTION}"]


def test_a_seed_of_minus_one_is_any_and_other_fields_are_called_by_their_labels(page: Page) -> None:
    own = opened(page)
    seeds = {short_jobs.drawing(own, {"prompt": "a star", "base": True, "seed": -1})[1]["seed"] for _ in range(3)}
    assert len(seeds) == 3 and min(seeds) >= 0
    tab = page.generate_tab
    values = {field: field.value for field in (*tab.fields.values(), tab.library, tab.sampler, tab.sheet_rows)}
    values |= {page.model: "star", tab.fields["prompt"]: "a star", tab.weights: BASE, tab.fields["seed"]: None}
    with pytest.raises(UserError) as told:
        tab._labelled(tab._draw)({**values, tab.fields["width"]: 100})
    assert told.value.problems[0] == "Sample Seed: it is empty; give a whole number."
    assert told.value.problems[1].startswith("Sample Width: it must be a multiple of 8")
    with pytest.raises(UserError, match="Lora Weights: it is empty; give numbers"):
        tab._labelled(tab._draw_sheet)({**values, tab.sheet_columns: "", tab.sheet_rows: [BASE]})
    export = tab.export
    asked = {**values, export.to: " ", export.half: False, export.kind: AS_IT_IS}
    with pytest.raises(UserError, match="Export to: it is empty"):
        export._labelled(export._export)(asked)
    with pytest.raises(UserError, match="Other Checkpoint: it is empty"):
        export._labelled(export._export)({**asked, export.kind: ONTO, export.merge: 1, export.onto: None})


@pytest.mark.parametrize("bad", ["", " ", *NO_PATHS, "/", "../../etc", '"', "nowhere/at/all/really/x"])
def test_what_is_no_setting_is_refused_with_a_sentence_too(page: Page, bad: str) -> None:
    for do in (
        lambda: actions.create(page.host, bad, str(MINIATURE), {}),
        lambda: actions.create(page.host, "new", bad, {}),
        lambda: actions.import_settings(opened(page), bad),
        lambda: actions.duplicate(page.host, opened(page), bad),
        lambda: actions.rename(page.host, opened(page), bad),
    ):
        with pytest.raises(UserError) as told:
            do()
        assert len(told.value.problems) == 1
        assert told.value.problems[0].endswith(".")
    if bad in NO_PATHS or not bad.strip():
        with pytest.raises(UserError):
            jobs.export(page.host, opened(page), {"to": bad, "base": True})
    assert project.names(page.host.folders()) == ["star"]


# The same with a browser, in every field for a number at once.


@pytest.fixture(scope="module")
def hands(browser: Any, server: Server, data: Path) -> Iterator[Hands]:
    own = {"concepts.0.instance_data_dir": str(SUBJECT_PICTURES), "concepts.0.instance_prompt": "a sks star"}
    project.create(Folders(data), "star", MINIATURE, own)
    started = Hands(browser, server.address)
    started.tab("Settings")
    started.page.locator("#db_show_advanced input").first.check()
    yield started


@cache
def fields() -> list[Leaf]:
    """The settings with a field that takes any number; a slider holds none but its own."""
    with gr.Blocks():
        return [leaf for leaf in LEAVES if isinstance(make(leaf), gr.Number)]


WRITE = """(values) => {
    const set = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set;
    const written = [];
    for (const [id, value] of Object.entries(values)) {
        const field = document.querySelector(`#${id} input[type=number]`);
        if (field) {
            set.call(field, value);
            field.dispatchEvent(new Event("input", {bubbles: true}));
            written.push(id);
        }
    }
    return written;
}"""


def open_all(hands: Hands) -> None:
    """What is folded may not be there yet."""
    for tab in ("Settings", "Concepts"):
        hands.tab(tab)
        folded = hands.page.locator(f"#db_{tab.lower()}_tab .label-wrap:not(.open)")
        while folded.count():
            folded.first.click()


def write_all(hands: Hands, some: list[Leaf], value: Any) -> set[str]:
    """Writes what `value` says of each setting, as quickly as a paste; returns the fields that took it."""
    return set(hands.page.evaluate(WRITE, {elem_id(leaf.key): value(leaf) for leaf in some}))


def sentences(hands: Hands) -> dict[str, str]:
    told = """fields => fields.map(field => [field.id, field.querySelector(".db-sentence").textContent])"""
    return dict(hands.page.eval_on_selector_all("#db_page .db-wrong", told))


def test_every_number_field_says_what_is_wrong_with_it(hands: Hands, data: Path) -> None:
    before = open_project(Folders(data), "star").settings()
    open_all(hands)
    some = [leaf for leaf in fields() if leaf.spec.min is not None]
    expected = write_all(hands, some, lambda leaf: f"{leaf.spec.min - 1:g}")
    assert expected == {elem_id(leaf.key) for leaf in some}
    told: dict[str, str] = {}
    until = time.monotonic() + 30
    while set(told) != expected and time.monotonic() < until:
        time.sleep(0.3)
        told = sentences(hands)
    assert set(told) == expected
    assert all("below the minimum" in sentence for sentence in told.values())
    assert open_project(Folders(data), "star").settings() == before


def test_train_refuses_with_the_same_sentences(hands: Hands, data: Path) -> None:
    hands.press("db_train")
    hands.see("#db_run_said .db-problems", "Seed: -1 is below the minimum, 0.")
    assert job_list.runs(open_project(Folders(data), "star")) == []


def test_emptied_fields_are_told_and_mending_them_saves(hands: Hands, data: Path) -> None:
    write_all(hands, fields(), lambda leaf: "")
    hands.tab("Settings")
    hands.see("#db_general_seed .db-sentence", "it is empty; give a whole number.")
    write_all(hands, fields(), lambda leaf: f"{leaf.default:.12g}")
    hands.page.wait_for_function("document.querySelectorAll('#db_page .db-wrong').length === 0", timeout=60_000)
    hands.saved()
    assert open_project(Folders(data), "star").settings()["general.seed"] == 420420


def test_one_bad_field_loses_nothing_of_the_others(hands: Hands, data: Path) -> None:
    hands.tab("Settings")
    hands.write("db_general_seed", "-3")
    hands.write("db_captions_prefix", "kept")
    hands.see("#db_said .db-problems", "Seed: -3 is below the minimum")
    while open_project(Folders(data), "star").settings()["captions.prefix"] != "kept":
        time.sleep(0.2)
    hands.open()  # a reload
    hands.tab("Settings")
    hands.unfold("db_section_captions")
    assert hands.value("db_captions_prefix") == "kept"
    assert hands.value("db_general_seed") == "420420"


def test_the_script_had_no_errors(hands: Hands) -> None:
    assert hands.errors == []


def test_of_dropped_files_those_that_are_pictures_are_taken(page: Page, tmp_path: Path) -> None:
    picture, strange, other = SUBJECT_PICTURES / "1.png", tmp_path / "desktop.ini", tmp_path / "notes"
    strange.touch()
    other.touch()
    tab, own = page.concepts_tab, opened(page)
    before = own.settings()
    values = {**shown(page), page.row: 0, page.model: "star", page.form.loaded: ""}

    def drop(*files: Path) -> str:
        done = tab._take_pictures({**values, tab.drop: [str(file) for file in files]})
        assert done[tab.drop] is None, "what was dropped does not stay there, so that the next can be"
        return str(done[page.message])

    assert "notes: these are no pictures" in drop(other)
    assert own.settings() == before
    said = drop(picture, strange, other)
    assert "Left out, as neither picture nor caption: desktop.ini, notes." in said
    folder = Path(own.settings()["concepts.0.instance_data_dir"])
    assert [file.name for file in folder.iterdir()] == ["1.png"]
    if former := before["concepts.0.instance_data_dir"]:
        assert f"Those in {former} are not trained any more." in said
    assert "not trained any more" not in drop(picture)
