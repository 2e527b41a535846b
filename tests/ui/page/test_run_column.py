"""The run beside the tabs: its buttons and what they say, for a keyboard, a screen reader and weak eyes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dreambooth.core import job_list, project
from dreambooth.core.job_folder import Job
from dreambooth.core.project import Folders, Project
from dreambooth.core.settings import Settings
from dreambooth.service import uploads
from dreambooth.ui.page.run_column import TITLES
from tests.ui.page.conftest import Server
from tests.ui.page.contrast import FAINT_LINES
from tests.ui.page.hands import Hands

STEP = {"steps": 100, "loss": 0.1, "subject_loss": 0.08, "prior_loss": 0.02, "rate": 1e-4,
        "rates": {"unet": 1e-4, "text_encoder": 5e-5}, "steps_per_second": 2.0, "seconds_left": 9}  # fmt: skip
FOCUSED = "() => document.activeElement.ariaLabel || document.activeElement.textContent"


@pytest.fixture
def star(data: Path) -> Iterator[Project]:
    made = project.create(Folders(data), "star", data / "Stable-diffusion" / "miniature.safetensors", {})
    yield made
    project.open_project(Folders(data), "star").folder.rename(data / f"gone-{made.folder.stat().st_ino}")


@pytest.fixture
def hands(star: Project, browser: Any, server: Server) -> Iterator[Hands]:
    opened = Hands(browser, server.address)
    yield opened
    assert opened.errors == []
    opened.page.close()


def begun(star: Project, data: Path, steps: int = 3) -> Job:
    """A run that has told of some steps."""
    job = job_list.new_run(Folders(data), star, Settings())
    job.report("started")
    for step in range(1, steps + 1):
        job.report("step", step=step, images=step, **STEP)
    return job


def test_every_button_says_what_it_does_and_a_lost_run_offers_what_mends_it(
    hands: Hands, star: Project, data: Path
) -> None:
    """Its memory may have been too little: Performance is what the page and the guide tell to press."""
    job = begun(star, data)
    (job.state / f"{3:09}").mkdir(parents=True)
    hands.state("resumable")
    for name in ("db_resume", "db_performance", "db_train_anew"):
        hands.see(f"#{name}")
    for name, words in TITLES.items():
        assert hands.page.locator(f"button#{name}, #{name} button").first.get_attribute("title") == words
    refresh = hands.page.locator("button#db_refresh, #db_refresh button").first
    assert refresh.get_attribute("aria-label") == "Show models and settings as they are now"
    moves = "() => getComputedStyle(document.querySelector('#db_run .db-bar i')).transitionDuration"
    assert hands.page.evaluate(moves) == "0.6s"
    hands.page.emulate_media(reduced_motion="reduce")
    assert hands.page.evaluate(moves) == "0s"


def test_the_end_of_a_run_is_said_to_who_does_not_see_it(hands: Hands, star: Project, data: Path) -> None:
    job = begun(star, data)
    with job.hold() or pytest.fail("it is held"):
        hands.state("running")
        line = hands.page.locator("#db_told [role=status]")
        line.evaluate("line => { line.textContent = ''; }")
    job.report("failed", problems=["It broke."], refused=False)
    hands.page.wait_for_function("() => document.querySelector('#db_told p').textContent === 'Run 1: failed'")
    hands.tab("Model")
    hands.unfold("db_create_section")
    hands.press("db_create")
    hands.see("#db_create_said [role=alert]", "Name: it is empty")


def test_a_model_that_is_gone_is_told_in_a_sentence(hands: Hands, star: Project, data: Path) -> None:
    hands.state("none")
    star.folder.rename(data / "elsewhere")
    told = hands.see("#db_run .db-silent", "There is no model named 'star'")
    assert "{" not in told.inner_text()
    (data / "elsewhere").rename(star.folder)
    told.wait_for(state="detached")
    hands.page.route("**/page/live?view=run*", lambda asked: asked.fulfill(status=502, body="<h1>Bad Gateway</h1>"))
    hands.see("#db_run .db-silent", "The WebUI answered with an error (502).")


def test_a_log_that_was_unfolded_holds_up_nothing_when_it_is_gone(hands: Hands, star: Project, data: Path) -> None:
    first = begun(star, data)
    first.log.write_text("It begins.\n", encoding="utf-8")
    first.report("done")
    hands.see("#db_run summary", "Log").click()
    hands.see("#db_run pre", "It begins.")
    begun(star, data).report("paused")
    hands.state("paused")
    assert not hands.page.locator("#db_run pre").count()


def test_the_keyboard_keeps_its_place_while_a_view_is_drawn_anew(hands: Hands, star: Project, data: Path) -> None:
    job = job_list.create(star.errands, {"kind": "generate", "model": "star", "out": ""}, "{}")
    job.report("started")
    hands.tab("Generate")
    with job.hold() or pytest.fail("it is held"):
        for done in (1, 2):
            job.report("stage", name="drawing", done=done, total=10)
            hands.see("#db_drawn .db-facts", f"{done} of 10")
            if done == 1:
                hands.see("#db_drawn .db-stop").focus()
        assert hands.page.evaluate(FOCUSED) == "Stop"
    hands.page.locator("#db_drawn .db-stop").wait_for(state="detached")
    assert hands.page.evaluate("() => document.activeElement.closest('#db_drawn') !== null"), "it goes on from there"


def test_after_a_picture_was_taken_away_the_keyboard_is_at_the_next(
    hands: Hands, star: Project, data: Path, tmp_path: Path
) -> None:
    files = [tmp_path / f"{name}.png" for name in "abc"]
    for file in files:
        Image.new("RGB", (64, 64)).save(file)
    folder = uploads.take_in(star, "", files).folder
    project.write_settings(star, {"concepts.0.instance_data_dir": folder, "concepts.0.instance_prompt": "a star"})
    hands.press("db_refresh")
    hands.tab("Concepts")
    hands.see("#db_pictures .db-away >> nth=1").focus()
    hands.page.keyboard.press("Enter")
    hands.page.wait_for_function("() => document.querySelectorAll('#db_pictures .db-away').length === 2")
    assert hands.page.evaluate(FOCUSED) == "Move c.png to the trash"


def test_a_picture_that_train_named_is_named_no_more_once_it_is_taken_away(
    hands: Hands, star: Project, tmp_path: Path
) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    folder = uploads.take_in(star, "", [tmp_path / "a.png", tmp_path / "broken.png"]).folder
    project.write_settings(star, {"concepts.0.instance_data_dir": folder, "concepts.0.instance_prompt": "a star"})
    hands.press("db_refresh")
    hands.tab("Concepts")
    away = hands.see("#db_pictures .db-away[aria-label*='broken.png']")
    hands.holds("db_concepts_N_instance_prompt", "a star")
    hands.press("db_train")
    told = hands.see("#db_run_said .db-problems", "broken.png")
    away.click()
    told.wait_for(state="detached")


def test_the_keyboard_meets_the_run_where_it_is_seen_and_its_end_can_be_reached(
    hands: Hands, star: Project, data: Path
) -> None:
    job = begun(star, data)
    job.log.write_text("a line\n" * 60)
    hands.see("#db_run details").locator("summary").click()
    first = "() => document.querySelector('#db_columns').firstElementChild.id"
    hands.page.set_viewport_size({"width": 1280, "height": 400})
    box = hands.page.evaluate("() => document.querySelector('#db_run_column').getBoundingClientRect().toJSON()")
    below = "name => document.querySelector(name).getBoundingClientRect().toJSON()"
    buttons, shown = (hands.page.evaluate(below, name) for name in ("#db_run_buttons", "#db_run"))
    assert shown["top"] >= buttons["bottom"], "it is under the buttons, not beside them"
    inner = (
        "() => { const one = document.querySelector('#db_run_column'); return one.scrollHeight - one.clientHeight; }"
    )
    assert box["height"] <= 400 and hands.page.evaluate(inner) > 50, "it scrolls by itself"
    assert hands.page.evaluate(first) == "db_tabs_column"
    hands.page.set_viewport_size({"width": 400, "height": 800})
    hands.page.wait_for_function(f"() => ({first})() === 'db_run_column'")
    assert hands.page.evaluate(inner) == 0
    hands.page.set_viewport_size({"width": 1280, "height": 900})
    hands.page.wait_for_function(f"() => ({first})() === 'db_tabs_column'")


def test_a_growing_log_is_followed_and_one_that_is_read_further_up_stays_there(
    hands: Hands, star: Project, data: Path
) -> None:
    job = begun(star, data)
    job.log.write_text("a line\n" * 100)
    part = "#db_run section[data-db-part=log]"
    hands.see(f"{part} summary").click()
    log = hands.see(f"{part} pre", "a line")

    def grow(words: str) -> None:
        with job.log.open("a") as file:
            file.write(f"{words}\n")
        hands.see(f"{part} pre", words)

    grow("the first more")
    left = "log => log.scrollHeight - log.clientHeight - log.scrollTop"
    assert log.evaluate("log => log.scrollHeight > log.clientHeight") and log.evaluate(left) < 2
    log.evaluate("log => { log.scrollTop = 30; }")
    grow("the second more")
    assert log.evaluate("log => log.scrollTop") == 30
    log.evaluate("log => { log.scrollTop = log.scrollHeight; }")
    grow("the third more")
    assert log.evaluate(left) < 2


def test_curves_bars_and_borders_can_be_seen_by_weak_eyes(
    hands: Hands, star: Project, data: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    own = {"concepts.0.instance_data_dir": str(tmp_path), "concepts.0.instance_prompt": "[filewords]"}
    project.write_settings(star, own)
    job, check = begun(star, data), job_list.create(star.errands, {"kind": "check", "model": "star"}, "{}")
    for step in (1, 3):
        job.report("measured", step=step, images=step, held_out=0.1, learned=0.2, drift=None)
    check.report("started")
    with job.hold() or pytest.fail("it is held"), check.hold() or pytest.fail("it is held"):
        hands.state("running")
        hands.tab("Concepts")
        hands.see("#db_plan .db-bar")
        hands.see("#db_pictures textarea").focus()
        for dark in (False, True):
            hands.page.evaluate("dark => document.body.classList.toggle('dark', dark)", dark)
            faint, seen = hands.page.evaluate(FAINT_LINES)
            assert (faint, seen) == ([], {"polyline": 6, "bar": 1, "waits": 1, "best": 1, "focus": 1})
        hands.page.evaluate("document.body.classList.remove('dark')")
        hands.page.add_style_tag(content="#db_page .db-curve polyline { stroke: #bbb !important; }")
        assert len(hands.page.evaluate(FAINT_LINES)[0]) == 6, "faint ones would be found"
