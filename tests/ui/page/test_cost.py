"""What a run costs, said while settings move; and Performance, which sets what fits the card."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dreambooth.core import engine_capabilities, job_list, project
from dreambooth.core.errors import UserError
from dreambooth.core.install_paths import SUBJECT_PICTURES
from dreambooth.core.memory import headroom
from dreambooth.core.schema import to_flat
from dreambooth.core.settings import parse, to_json
from dreambooth.service import cost
from dreambooth.ui.page import actions
from dreambooth.ui.page.cost_view import cost_view
from dreambooth.ui.page.page import Page
from tests.ui.page.laid_out import laid_out

GB = 2**30


@pytest.fixture
def page(tmp_path: Path) -> Page:
    own = {"concepts__0__instance_data_dir": str(SUBJECT_PICTURES), "concepts__0__instance_prompt": "a sks star"}
    return laid_out(tmp_path / "models", **own)


def opened(page: Page) -> Any:
    return project.open_project(page.host.folders(), "star")


def values(page: Page, **changed: Any) -> dict[Any, Any]:
    shown = page.show("star")
    read = {control: shown[control] for control in page.form.controls.values()}
    by_key = {page.form.controls[key.replace("__", ".")]: value for key, value in changed.items()}
    return {**read, page.model: "star", page.row: 0, **by_key}


def percent(html: str) -> float:
    found = re.search(r'aria-valuenow="(\d+)"', html)
    assert found
    return float(found[1])


def test_the_bar_moves_with_the_controls(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_capabilities, "card_bytes", lambda: GB)
    before = page.save(values(page))[page.about]
    after = page.save(values(page, batching__train_batch_size=64))[page.about]
    assert percent(after) > percent(before) + 5
    assert re.search(r"Needs about \d+ MB of 1\.0 GB<", before)
    assert "5 pictures · 500 steps" in before


def test_a_choice_that_cannot_work_here_is_told_when_it_is_saved(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = {("memory.attention", "xformers"): "the package is not there", ("memory.unet_weights", "nf4"): "no room"}
    monkeypatch.setattr(engine_capabilities, "fault", lambda key, choice, *_: faults.get((key, choice), ""))
    assert "does not work here" not in page.save(values(page))[page.about]
    shown = page.save(values(page, memory__attention="xformers"))
    assert opened(page).settings()["memory.attention"] == "xformers"
    assert "Memory Attention: xformers does not work here (the package is not there); choose sdpa." in shown[page.about]
    marks = re.search(r'data-db-problems="([^"]*)"', shown[page.about])
    assert marks and "memory.attention: xformers" in marks[1], "the browser puts it at the control"
    assert "does not work here" in page.show("star")[page.about]


def test_what_does_not_fit_is_said_with_the_mend(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_capabilities, "card_bytes", lambda: GB // 2)
    shown = page.save(values(page, batching__train_batch_size=64))[page.about]
    assert "db-too-much" in shown and "Performance sets what fits" in shown
    assert percent(shown) == 100


def test_what_a_disk_has_no_room_for_is_said_before_a_run_starts(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = cost.estimate(page.host.folders(), opened(page), parse(opened(page).settings())).disk_bytes
    for free, fits in ((whole, True), (whole - 1, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        shown = page.save(values(page))[page.about]
        assert ("are free; make room" in shown) is not fits


def test_without_a_card_or_pictures_nothing_is_made_up(page: Page) -> None:
    own = parse({})
    costs = cost.estimate(page.host.folders(), opened(page), own)
    assert (costs.pictures, costs.length, costs.seconds) == (0, None, None)
    shown = cost_view(costs, 0)
    assert "No pictures yet" in shown and "of memory" in shown and "db-bar" not in shown


def test_performance_sets_what_fits_and_says_what_and_why(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = values(page, batching__train_batch_size=64, previews__negative_prompt="kept")
    needed = cost.estimate(page.host.folders(), opened(page), parse({"batching.train_batch_size": 64})).memory_bytes
    monkeypatch.setattr(engine_capabilities, "card_bytes", lambda: headroom.card_with(needed * 0.97))
    shown = page.run_column._performance(asked)
    said, flat = shown[page.run_column.message], opened(page).settings()
    before = to_flat(parse(page.form.read(asked, 0)))
    changed = {key: value for key, value in flat.items() if value != before[key]}
    assert changed and set(changed) <= {"batching.gradient_checkpointing", "batching.train_batch_size",
                                        "batching.gradient_accumulation_steps", "memory.vae_decoding",
                                        "memory.checkpointed_share", "optimizer.name"}  # fmt: skip
    for key in changed:
        label = page.form.leaves[key].spec.label
        assert f"<b>{label}</b>" in said
        assert shown[page.form.controls[key]] == changed[key]
    assert "Needs about" in said and flat["previews.negative_prompt"] == "kept"
    after = cost.estimate(page.host.folders(), opened(page), parse(flat)).memory_bytes
    assert after < needed * 0.97


def test_performance_without_a_card_changes_nothing(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_capabilities, "card_bytes", lambda: 0)
    before = opened(page).settings()
    with pytest.raises(UserError, match="no card is known here"):
        page.run_column._performance(values(page))
    assert opened(page).settings() == before
    with pytest.raises(UserError):
        actions.performance(opened(page), before, 0)


def test_class_pictures_that_are_there_are_not_to_be_drawn(page: Page) -> None:
    star = opened(page)
    own = {**star.settings(), "concepts.0.class_prompt": "a star", "concepts.0.num_class_images_per": 2}
    project.write_settings(star, own)
    assert cost.to_draw(star, parse(own))
    job = job_list.create(star.errands, {"kind": "class-images", "model": "star"}, to_json(parse(own)))
    star.class_pictures.mkdir()
    assert cost.to_draw(star, parse(own)), "it has not ended"
    job.report("done", class_pictures=[])
    assert not cost.to_draw(star, parse(own))
    assert cost.to_draw(star, parse({**own, "concepts.0.class_prompt": "a large star"}))
    damaged = job_list.create(star.errands, {"kind": "class-images", "model": "star"}, to_json(parse(own)))
    (damaged.folder / "job.json").write_text("{", encoding="utf-8")
    assert not cost.to_draw(star, parse(own)), "a damaged job tells nothing, and takes nothing away"


def test_class_pictures_that_are_missing_are_told(page: Page, tmp_path: Path) -> None:
    star = opened(page)
    own = {**star.settings(), "concepts.0.class_prompt": "a star", "concepts.0.num_class_images_per": 3}

    def said(**more: Any) -> str:
        return cost_view(cost.estimate(page.host.folders(), star, parse({**own, **more})), 0)

    assert "before them 15 class pictures" in said()
    assert "before them 12 class pictures" in said(**{"concepts.0.held_out": 1})
    assert "class pictures" not in said(**{"concepts.0.class_mode": "off"})
    assert "before them 10 class pictures" in said(**{"concepts.0.class_data_dir": str(SUBJECT_PICTURES)})
    star.class_pictures.mkdir()
    assert "before them up to 15 class pictures" in said()


def test_the_time_is_that_of_runs_of_the_same_kind(page: Page) -> None:
    star = opened(page)
    own = {**star.settings(), "batching.gradient_accumulation_steps": 2}
    job = job_list.create(star.runs, {"kind": "train", "model": "star"}, to_json(parse(own)))
    job.report("step", step=1, steps=500, images=1, loss=0.1, rate=1e-3, steps_per_second=2.0, seconds_left=1)
    assert cost.estimate(page.host.folders(), star, parse(own)).seconds == 125
    for key, other in (("gradient_checkpointing", True), ("num_processes", 2), ("gradient_accumulation_steps", 1)):
        assert cost.estimate(page.host.folders(), star, parse({**own, f"batching.{key}": other})).seconds is None, key


def test_masks_are_no_pictures_and_those_held_out_are_not_learned(page: Page, tmp_path: Path) -> None:
    folder = shutil.copytree(SUBJECT_PICTURES, tmp_path / "masked")
    for path in list(folder.glob("*.png")):
        shutil.copy(path, path.with_name(f"{path.stem}-mask.png"))
    own = {"concepts.0.instance_data_dir": str(folder), "concepts.0.held_out": 2, "intervals.num_train_epochs": 10}
    costs = cost.estimate(page.host.folders(), opened(page), parse(own))
    assert costs.length
    assert (costs.pictures, costs.length.images) == (5, 30)
