"""What a person has chosen to draw with stays when there is a newer result; else the page goes on with the newest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dreambooth.core import job_list, project
from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import SUBJECT_PICTURES
from dreambooth.core.settings import Settings
from dreambooth.ui.page.generate import BASE
from dreambooth.ui.page.page import Page
from tests.ui.page.laid_out import laid_out

OWN = {"concepts__0__instance_data_dir": str(SUBJECT_PICTURES), "concepts__0__instance_prompt": "a sks star"}


@pytest.fixture
def page(tmp_path: Path) -> Page:
    return laid_out(tmp_path / "models", **OWN)


def ran(page: Page, number: int) -> str:
    """A run that has ended; what the page calls its result."""
    folders = page.host.folders()
    job = job_list.new_run(folders, project.open_project(folders, "star"), Settings())
    path = folders.loras / f"star-{number}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    job.report("started")
    job.report("saved", kind="lora", path=str(path), bytes=0, images=10)
    job.report("done")
    return f"{path.name} (run {number})"


def of_browser(page: Page, shown: dict[Any, Any], before: dict[Any, Any]) -> dict[Any, Any]:
    taken = {place: value for place, value in shown.items() if place in {*page.everything, *page.generate_tab.chosen()}}
    return before | {place: value["value"] if isinstance(value, dict) else value for place, value in taken.items()}


def test_a_choice_stays_and_without_one_the_newest_is_taken(page: Page) -> None:
    tab, first = page.generate_tab, ran(page, 1)
    shown = page.show("star")
    values = of_browser(page, shown, {})
    assert (values[tab.weights], values[tab.sheet_rows]) == (first, [first])
    second = ran(page, 2)
    values = of_browser(page, page.look(values), values)
    assert (values[tab.weights], values[tab.sheet_rows]) == (second, [second, first])
    values |= {tab.weights: BASE, tab.sheet_rows: [first]}
    third = ran(page, 3)
    shown = page.look(values)
    assert shown[tab.weights]["choices"] == [third, second, first, BASE]
    values = of_browser(page, shown, values)
    assert (values[tab.weights], values[tab.sheet_rows]) == (BASE, [first])
    for act in (page.concepts_tab._add, page.concepts_tab._remove):  # what has nothing to do with results
        values = of_browser(page, act(values), values)
        assert (values[tab.weights], values[tab.sheet_rows]) == (BASE, [first])


def test_what_was_chosen_and_is_gone_makes_room_for_the_newest(page: Page) -> None:
    tab, (first, second) = page.generate_tab, (ran(page, 1), ran(page, 2))
    values = of_browser(page, page.show("star"), {}) | {tab.weights: first, tab.sheet_rows: [first, BASE]}
    values = of_browser(page, page.look(values), values)
    assert values[tab.weights] == first
    (page.host.folders().loras / "star-1.safetensors").unlink()
    values = of_browser(page, page.look(values), values)
    assert (values[tab.weights], values[tab.sheet_rows]) == (second, [BASE])


def test_with_a_result_that_is_gone_since_the_page_looked_nothing_is_drawn_or_exported(page: Page) -> None:
    """Nor is it done with the model before training in its place."""
    tab, gone = page.generate_tab, ran(page, 1)
    values = of_browser(page, page.show("star"), {})
    values |= {
        field: field.value for field in (*tab.fields.values(), *tab.export._controls().values(), tab.sheet_columns)
    }
    values |= {tab.fields["prompt"]: "a star", tab.export.to: "/x.safetensors", tab.export.kind: tab.export.kind.value}
    values |= {tab.weights: gone, tab.sheet_rows: [BASE, gone], tab.library: tab.library.value}
    (page.host.folders().loras / "star-1.safetensors").unlink()
    for act in (tab._draw, tab._draw_sheet, tab.export._export):
        with pytest.raises(UserError, match=r"star-1.safetensors \(run 1\): it is gone by now; choose another result."):
            act(values)
    assert not page.host.folders().projects.joinpath("star", "errands").exists()


def test_another_model_has_its_own_newest(page: Page) -> None:
    tab, first = page.generate_tab, ran(page, 1)
    values = of_browser(page, page.show("star"), {}) | {tab.weights: BASE}
    folders = page.host.folders()
    project.create(folders, "moon", project.open_project(folders, "star").source)
    values = of_browser(page, page.select({**values, page.choice: "moon"}), values)
    values = of_browser(page, page.select({**values, page.choice: "star"}), values)
    assert values[tab.weights] == first
