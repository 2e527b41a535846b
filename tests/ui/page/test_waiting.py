"""What waits while another job has the device: the page offers to take it out of the queue, and nothing is lost."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dreambooth.core import job_list, project
from dreambooth.core.files import lock
from dreambooth.core.job_folder import Job
from dreambooth.core.project import Folders, Project
from dreambooth.core.settings import Settings
from tests.ui.page.conftest import Server
from tests.ui.page.hands import Hands


def made(data: Path, name: str) -> Project:
    return project.create(Folders(data), name, data / "Stable-diffusion" / "miniature.safetensors", {})


@pytest.fixture
def at_work(data: Path) -> Iterator[Job]:
    """A run of another model that has the device."""
    name, projects = "other", Folders(data).projects
    opened = project.open_project(Folders(data), name) if (projects / name).exists() else made(data, name)
    job = job_list.new_run(Folders(data), opened, Settings())
    (projects / ".device.json").write_text(json.dumps({"folder": str(job.folder)}), encoding="utf-8")
    with lock.acquire(projects / ".device"):  # type: ignore[union-attr]
        yield job


@pytest.mark.usefixtures("at_work")
def test_a_run_that_waits_leaves_the_queue_by_one_press_and_keeps_its_state(
    browser: Any, server: Server, data: Path
) -> None:
    job = job_list.new_run(Folders(data), made(data, "star"), Settings())
    (job.state / f"{5000:09}").mkdir(parents=True)
    for event in ("started", "paused"):
        job.report(event)
    job.request("start")
    hands = Hands(browser, server.address)
    hands.state("queued")
    hands.see("#db_pause")
    assert not hands.page.locator("#db_discard").is_visible()
    hands.press("db_pause")
    hands.state("paused")
    hands.see("#db_resume")
    assert (job.status(), job.states()) == ("paused", [5000])
    assert hands.errors == []
    hands.page.close()


def test_a_drawing_that_waits_says_for_what_and_can_be_taken_out(
    browser: Any, server: Server, data: Path, at_work: Job
) -> None:
    job = job_list.create(made(data, "moon").errands, {"kind": "generate", "model": "moon", "out": ""}, "{}")
    job.request("start")
    hands = Hands(browser, server.address)
    hands.tab("Generate")
    hands.see("#db_drawn .db-quiet", f"Waiting for run {at_work.name}.")
    assert not hands.page.locator("#db_drawn .db-bar").is_visible()
    with at_work.hold():  # type: ignore[union-attr]
        for place in ("#db_drawn", "#db_run"):
            (at_work.folder / "requests" / "pause").unlink(missing_ok=True)
            hands.see(f"{place} button[aria-label='Pause {at_work.name}']", "Pause it").click()
            until = time.monotonic() + 20
            while at_work.requests() != {"pause"}:
                assert time.monotonic() < until, "one press makes room"
                time.sleep(0.1)
    hands.see("#db_drawn .db-stop").click()
    hands.page.locator("#db_drawn .db-stop").wait_for(state="detached")
    assert not hands.page.locator("#db_drawn .db-bar").is_visible()
    assert job.status() == "stopped"
    assert hands.errors == []
    hands.page.close()


def test_when_a_model_was_fetched_the_one_that_was_asked_for_is_made_and_no_other(browser: Any, server: Server) -> None:
    hands, state = Hands(browser, server.address), "none"

    def download(route: Any) -> None:
        route.fulfill(content_type="text/html", body=f'<div data-db-state="{state}" data-db-settings=""></div>')

    hands.page.route(re.compile("view=download"), download)
    hands.tab("Model")
    hands.unfold("db_create_section")
    hands.see("#db_create")
    hands.page.evaluate(
        """() => {
            window.pressed = 0;
            document.addEventListener("click", (event) => {
                if (event.target.closest("#db_create")) {
                    pressed++;
                    event.stopImmediatePropagation();
                }
            }, true);
            const view = Object.assign(document.createElement("div"), {className: "db-live", textContent: "…"});
            view.dataset.dbLive = "download";
            document.querySelector("#db_create").before(view);
        }"""
    )

    def becomes(wanted: str) -> None:
        nonlocal state
        state = wanted
        hands.page.wait_for_function(f"() => document.querySelector('[data-db-live=download]').dbWas === '{wanted}'")

    def fetched(name: str, *, but_then: str = "") -> int:
        hands.write("db_new_name", name)
        becomes("running")
        if but_then:
            hands.write("db_new_name", but_then)
        becomes("done")
        return int(hands.page.evaluate("() => pressed"))

    assert fetched("of-the-hub") == 1
    assert fetched("of-the-hub", but_then="another") == 1
    hands.page.close()
