"""What the page says of how good a run is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dreambooth.core import job_folder, job_list, presets, project
from dreambooth.core.install_paths import SUBJECT_PICTURES
from dreambooth.core.project import Project
from dreambooth.core.settings import parse, to_json
from dreambooth.service import runs
from dreambooth.ui.describe import of_runs
from dreambooth.ui.page import actions, jobs
from dreambooth.ui.page.concept_view import concept_view
from dreambooth.ui.page.model_view import model_view
from dreambooth.ui.page.page import Page
from dreambooth.ui.page.plan_view import preset_view
from dreambooth.ui.page.quality_view import HINT, quality_view
from dreambooth.ui.page.run_view import run_view
from tests.ui.page.laid_out import laid_out


@pytest.fixture
def page(tmp_path: Path) -> Page:
    return laid_out(tmp_path / "models")


def opened(page: Page) -> Project:
    return project.open_project(page.host.folders(), "star")


def a_run(page: Page, *held_out: float, drift: float | None = 0.05) -> job_folder.Job:
    """A run that was measured every ten steps, and wrote a result at the second measure and at the last."""
    star = opened(page)
    job = job_list.create(star.runs, {"kind": "train", "model": "star"}, to_json(parse(star.settings())))
    last = 10 * (len(held_out) - 1)
    job.report("step", step=last, steps=100, images=last, loss=0.1, rate=1e-3, steps_per_second=2.0, seconds_left=1)
    for n, value in enumerate(held_out):
        job.report("measured", step=10 * n, images=10 * n, held_out=value, learned=value + 0.1, drift=drift)
    for images in dict.fromkeys((20, last)):
        path = Path(star.folder) / f"star_{images}.safetensors"
        path.write_bytes(b"x")
        job.report("saved", kind="lora", path=str(path), bytes=1, images=images)
    return job


def test_before_a_run_was_measured_nothing_is_said_of_it(page: Page) -> None:
    assert quality_view(a_run(page, 0.0).story()) == ""
    assert "How good it is" not in run_view(page.host.folders(), "star")


def test_a_run_without_held_out_pictures_says_how_to(page: Page) -> None:
    job = job_list.create(opened(page).runs, {"kind": "train", "model": "star"}, "{}")
    assert quality_view(job.story()) == ""
    job.report("step", step=1, steps=100, images=1, loss=0.1, rate=1e-3, steps_per_second=2.0, seconds_left=1)
    assert HINT in quality_view(job.story())


def test_the_best_moment_is_marked_in_the_plot_and_among_what_was_written(page: Page) -> None:
    job = a_run(page, 0.0, 0.2, 0.4, 0.3, 0.1)
    shown = run_view(page.host.folders(), "star")
    assert "best after 20 pictures seen" in shown
    assert "<b>10%</b> better than before" in shown and "moved by <b>5.0%</b>" in shown
    written = re.findall(r"<li.*?</li>", shown)
    assert ["db-best" in one for one in written] == [False, True]
    tiles = re.findall(r"<figure class=\"db-tile.*?</figure>", model_view(page.host.folders(), "star"))
    assert ["db-best" in one for one in tiles] == [False, True]
    assert [one["best"] for one in runs.outputs(opened(page))] == [False, True]
    said = of_runs.finished({**runs.summary(job), "run": "star/1"})
    assert "Best after 20 pictures seen: pictures that it does not learn are predicted 40% better than before" in said


def test_a_run_that_still_gets_better_or_never_does_is_said_to(page: Page) -> None:
    assert "still getting better" in quality_view(a_run(page, 0.0, 0.2, 0.4).story())
    shown = quality_view(a_run(page, 0.0, -0.2, -0.4, drift=None).story())
    assert "no better than before so far" in shown
    assert "<b>40%</b> worse than before" in shown
    assert "<b>0%</b> better" in quality_view(a_run(page, 0.0, -0.001).story())
    job = a_run(page, 0.0, -0.4, -0.2)
    job.report("done")
    assert "no better than before</small>" in quality_view(job.story())
    assert not any(one["best"] for one in runs.outputs(opened(page)) if one["run"] == job.name)
    longer = a_run(page, 0.0, 0.2, 0.4)
    longer.report("done")
    assert "best at its end; a longer run may be better still" in quality_view(longer.story())
    assert "The class has moved" not in shown


def test_the_pictures_that_are_held_out_are_marked(page: Page) -> None:
    star = opened(page)
    own = {**star.settings(), "concepts.0.instance_data_dir": str(SUBJECT_PICTURES), "concepts.0.held_out": 2}
    project.write_settings(star, own)
    assert concept_view(page.host.folders(), "star", 0, 48).count("db-held-out") == 2


def test_the_presets_hold_one_of_many_out_and_say_why(page: Page, tmp_path: Path) -> None:
    star, folder = opened(page), tmp_path / "eight"
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.png").write_bytes((SUBJECT_PICTURES / "1.png").read_bytes())
    own = {**star.settings(), "concepts.0.instance_data_dir": str(folder), "concepts.0.class_prompt": "a star"}
    project.write_settings(star, own)
    assert HINT in concept_view(page.host.folders(), "star", 0, 48)
    after, before, _ = actions.apply_preset(star, {}, "person")
    assert (before["concepts.0.held_out"], after["concepts.0.held_out"]) == (0, 1)
    shown = preset_view(presets.PRESETS["person"], before, after)
    assert "Pictures Held Out</b> 0 → 1 · <span>one of many can be spared" in shown
    tiles = concept_view(page.host.folders(), "star", 0, 48)
    assert HINT not in tiles and tiles.count("db-held-out") == 1
    _, again, _ = actions.apply_preset(star, {}, "person")
    assert preset_view(presets.PRESETS["person"], again, after).count("<li>") == 0
    (folder / "0.png").unlink()
    project.write_settings(star, own)
    assert "concepts.0.held_out" not in actions.apply_preset(star, {}, "person")[1]
    assert HINT not in concept_view(page.host.folders(), "star", 0, 48)


def test_the_best_moment_is_marked_among_the_previews(page: Page) -> None:
    job = a_run(page, 0.0, 0.2, 0.4, 0.3, 0.1)
    job.previews.mkdir()
    for images in (0, 20, 40):
        path = job.previews / f"{images:08}-00-00.png"
        path.write_bytes((SUBJECT_PICTURES / "1.png").read_bytes())
        job.report("preview", images=images, paths=[str(path)], prompts=["a star"])
    shown = run_view(page.host.folders(), "star")
    assert '<th>20 <b class="db-best">best</b></th><th>40</th>' in shown
    assert "No preview was drawn" not in model_view(page.host.folders(), "star")


def test_a_run_that_ended_by_its_patience_can_be_resumed_and_says_how(page: Page) -> None:
    job = a_run(page, 0.0, 0.4, 0.1)
    (job.state / "000000020").mkdir(parents=True)
    job.report("started")
    job.report("done")
    shown = run_view(page.host.folders(), "star")
    assert 'data-db-state="past-best"' in shown and "goes on nevertheless, without Patience" in shown
    assert 'db-point"' in model_view(page.host.folders(), "star")
    summary = {**runs.summary(job), "run": "star/1"}
    assert summary["resumable"] and "Go on without patience" in of_runs.finished(summary)
    assert "state after step 20 (run 1)" in jobs.results(opened(page))


def test_a_run_that_ended_by_itself_is_whole(page: Page) -> None:
    job = a_run(page, 0.0, 0.4, 0.1)
    job.report("started")
    job.report("done")
    shown = run_view(page.host.folders(), "star")
    assert "ended by itself, past its best" in shown
    assert 'aria-valuenow="100"' in shown
    assert "It ended by itself" in of_runs.finished({**runs.summary(job), "run": "star/1"})
