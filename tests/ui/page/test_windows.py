"""Two windows on one model, without a browser: each has what it has loaded, and writes only what was changed in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import MINIATURE, SUBJECT_PICTURES
from dreambooth.core.project import Project, create, open_project
from dreambooth.service import models
from dreambooth.ui.page import actions, jobs
from dreambooth.ui.page.page import Page
from tests.ui.page.laid_out import laid_out


@pytest.fixture
def page(tmp_path: Path) -> Page:
    own = {"concepts__0__instance_data_dir": str(SUBJECT_PICTURES), "concepts__0__instance_prompt": "a sks star"}
    return laid_out(tmp_path / "models", **own)


def opened(page: Page) -> Project:
    return open_project(page.host.folders(), "star")


class Window:
    """What a browser holds: the values of all controls as it was last given them."""

    def __init__(self, page: Page) -> None:
        self.page, self.values = page, dict[Any, Any]()
        self.take(page.show("star"))

    def take(self, shown: dict[Any, Any]) -> dict[Any, Any]:
        self.values |= {place: value for place, value in shown.items() if place in self.page.everything}
        return shown

    def write(self, key: str, value: Any) -> dict[Any, Any]:
        self.values[self.page.form.controls[key]] = value
        return self.take(self.page.save(self.values))


def test_nothing_of_the_other_window_is_lost(page: Page) -> None:
    one, other = Window(page), Window(page)
    one.write("lora.rank", 8)
    told = other.write("previews.negative_prompt", "blurred")
    assert opened(page).settings()["lora.rank"] == 8
    assert opened(page).settings()["previews.negative_prompt"] == "blurred"
    assert "<b>Lora Rank</b> 16 → 8" in told[page.elsewhere]
    assert "Negative" not in told[page.elsewhere]
    assert "Negative" in page.tell_newer(one.values)[page.elsewhere]
    one.write("intervals.num_train_epochs", 7)
    told = other.write("intervals.num_train_epochs", 9)  # in both: the last that was written counts
    assert opened(page).settings()["intervals.num_train_epochs"] == 9
    assert "Epochs" not in told[page.elsewhere]
    assert opened(page).settings()["lora.rank"] == 8
    other.take(page.show("star"))
    assert page.tell_newer(other.values)[page.elsewhere] == ""


def test_another_model_can_be_chosen_where_the_shown_one_is_gone_or_damaged(page: Page) -> None:
    """Else nothing but the refresh button would lead away from it."""
    create(page.host.folders(), "moon", MINIATURE, {})
    create(page.host.folders(), "sun", MINIATURE, {})
    window = Window(page)
    (opened(page).folder / "settings.json").write_text("{", encoding="utf-8")
    told = window.take(page.select({**window.values, page.choice: "moon"}))
    assert window.values[page.model] == "moon" and "settings.json: the file is damaged" in told[page.message]
    models.delete(page.host.folders(), "moon")
    told = window.take(page.select({**window.values, page.choice: "sun"}))
    assert window.values[page.model] == "sun" and "There is no model named" in told[page.message]


def test_a_model_that_was_removed_elsewhere_is_not_chosen(page: Page) -> None:
    """Its name would stand over the controls of the one that is shown, which Train would teach."""
    create(page.host.folders(), "moon", MINIATURE, {})
    window = Window(page)
    models.delete(page.host.folders(), "moon")
    told = window.take(page.telling_problems(page.select)({**window.values, page.choice: "moon"}))
    assert "There is no model named" in told[page.message] and window.values[page.model] == "star"
    assert (told[page.choice]["value"], told[page.choice]["choices"]) == ("star", ["star"])


def test_what_was_saved_is_not_written_again(page: Page) -> None:
    one, other = Window(page), Window(page)
    one.write("lora.rank", 8)
    other.write("lora.rank", 4)
    one.write("previews.negative_prompt", "blurred")
    assert opened(page).settings()["lora.rank"] == 4


def test_what_is_wrong_is_tried_again_and_the_rest_is_not(page: Page) -> None:
    one, other = Window(page), Window(page)
    one.values[page.form.controls["previews.count"]] = 3
    one.write("lora.rank", 0)
    assert opened(page).settings()["previews.count"] == 3
    other.write("previews.count", 2)
    one.write("lora.rank", 5)
    assert (opened(page).settings()["lora.rank"], opened(page).settings()["previews.count"]) == (5, 2)


def test_what_a_preset_could_not_save_is_saved_as_soon_as_it_can_be(page: Page) -> None:
    one = Window(page)
    one.take(page.concepts_tab._preset("person")(one.values))
    assert opened(page).settings()["concepts.0.num_class_images_per"] == 0
    one.write("concepts.N.class_prompt", "a photo of a person")
    assert opened(page).settings()["concepts.0.num_class_images_per"] == 5


def test_a_run_takes_what_its_page_showed(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []
    monkeypatch.setattr(jobs, "train", lambda host, own: begun.append(own.settings()["lora.rank"]))
    one, other = Window(page), Window(page)
    one.write("lora.rank", 8)
    told = other.take(page.run_column._train(other.values))
    assert not begun
    assert "16 → 8. The page shows it now; press again" in told[page.run_column.message]
    assert other.values[page.form.controls["lora.rank"]] == 8
    page.run_column._train(other.values)
    assert begun == [8]


def test_a_concept_that_was_removed_elsewhere_takes_no_others_place(page: Page) -> None:
    row = actions.add_concept(opened(page))
    actions.save(opened(page), {f"concepts.{row}.instance_prompt": "a zwx moon"})
    one, other = Window(page), Window(page)
    other.take(page.show("star", 1))
    actions.remove_concept(opened(page), 0)
    before = opened(page).settings()
    with pytest.raises(UserError, match="removed in another window"):
        one.write("concepts.N.instance_prompt", "a zwx heart")
    assert opened(page).settings() == before


def test_a_concept_before_one_that_was_removed_elsewhere_can_be_changed_on(page: Page) -> None:
    actions.add_concept(opened(page))
    one = Window(page)
    actions.remove_concept(opened(page), 1)
    for words in ("a zwx heart", "a zwx moon"):
        one.write("concepts.N.instance_prompt", words)
        assert opened(page).settings()["concepts.0.instance_prompt"] == words
    changed = {**opened(page).settings(), "concepts.0.class_prompt": "a moon"}
    actions.save(opened(page), changed)
    with pytest.raises(UserError, match="removed in another window"):
        one.write("concepts.N.instance_prompt", "a zwx star")


def test_nothing_is_done_to_a_concept_that_is_gone(page: Page, tmp_path: Path) -> None:
    actions.add_concept(opened(page))
    one = Window(page)
    one.take(page.show("star", 1))
    actions.remove_concept(opened(page), 1)
    before, tab = opened(page).settings(), page.concepts_tab
    for do in (tab._remove, tab._preset("person"), tab._take_pictures):
        with pytest.raises(UserError, match="removed in another window"):
            do({**one.values, tab.drop: [str(tmp_path / "a.png")]})
    assert opened(page).settings() == before


def test_a_concept_that_took_the_place_of_a_removed_one_is_left_alone(page: Page, tmp_path: Path) -> None:
    tab, prompt = page.concepts_tab, "concepts.N.instance_prompt"
    for row, words in ((1, "a zwx moon"), (2, "a qrs heart")):
        actions.add_concept(opened(page))
        actions.save(opened(page), {f"concepts.{row}.instance_prompt": words})
    one = Window(page)
    one.take(page.show("star", 1))
    actions.remove_concept(opened(page), 0)
    before = opened(page).settings()
    for do in (tab._remove, tab._take_pictures):
        with pytest.raises(UserError, match="another one stands in its place, so nothing was done"):
            do({**one.values, tab.drop: [str(tmp_path / "a.png")]})
    assert opened(page).settings() == before
    one.take(page.show("star", 0))
    late = dict(one.values)
    one.write(prompt, "a zwx star")  # the browser sends what it had before this was answered
    one.take(tab._remove({**late, page.form.controls[prompt]: "a zwx star"}))
    assert opened(page).settings()["concepts.0.instance_prompt"] == "a qrs heart"
    one.values[page.form.controls[prompt]] = "not saved yet"
    actions.add_concept(opened(page))
    tab._remove(one.values)
    assert opened(page).settings()["concepts.0.instance_prompt"] == ""


def test_secrets_are_not_told(page: Page) -> None:
    one, other = Window(page), Window(page)
    one.write("reporting.webhook_url", "https://discord.com/api/webhooks/1/secret")
    told = page.tell_newer(other.values)[page.elsewhere]
    assert "Webhook" in told and "secret" not in told


def test_a_concept_that_is_gone_is_not_chosen(page: Page) -> None:
    actions.add_concept(opened(page))
    one = Window(page)
    actions.remove_concept(opened(page), 1)
    one.take(page.concepts_tab._choose({**one.values, page.concepts_tab.chosen: "Concept 2"}))
    assert one.values[page.row] == 0


def test_a_path_that_was_written_with_quotes_is_no_other_windows(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []
    monkeypatch.setattr(jobs, "train", lambda host, own: begun.append(own.name))
    one, folder = Window(page), str(SUBJECT_PICTURES)
    for words in (f'"{folder}"', f" {folder}  ", folder):
        told = one.write("concepts.N.instance_data_dir", words)
        assert told[page.elsewhere] == ""
        assert opened(page).settings()["concepts.0.instance_data_dir"] == folder
        page.run_column._train(one.values)
    assert begun == ["star"] * 3
