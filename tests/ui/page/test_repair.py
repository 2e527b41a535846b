"""The way out where the engine is damaged, and where the WebUI was started anew behind an open page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dreambooth.core import job_list, project
from dreambooth.core.errors import RUN_SETUP, Problem, UserError
from dreambooth.core.project import Folders
from dreambooth.core.settings import Settings
from tests.ui.page.conftest import Server
from tests.ui.page.hands import Hands


def test_where_the_engine_may_be_damaged_the_button_that_sets_up_again_is_there(
    browser: Any, server: Server, data: Path
) -> None:
    folders = Folders(data)
    made = project.create(folders, "star", folders.checkpoints / "miniature.safetensors", {})
    job = job_list.new_run(folders, made, Settings())
    job.report("started")
    job.report("failed", refused=False, **UserError(Problem("It broke.")).as_json())
    hands = Hands(browser, server.address)
    hands.see("#db_run .db-problems", "It broke.")
    assert not hands.page.locator("#db_set_up").is_visible()
    job.report("failed", refused=False, **UserError(Problem("A package does not load.", do=RUN_SETUP)).as_json())
    hands.see("#db_run .db-problems", "A package does not load.")
    hands.see("#db_set_up")
    assert hands.page.locator("#db_train").is_visible() and hands.errors == []
    hands.page.close()


def test_a_page_that_was_left_open_over_a_restart_asks_to_be_loaded_anew(browser: Any, server: Server) -> None:
    hands = Hands(browser, server.address)
    statuses = [401, 403]

    def refused(asked: Any) -> None:
        asked.fulfill(status=statuses[0], body="{}")

    while statuses:
        hands.page.route("**/dreambooth/page/live*", refused)
        hands.see(".db-silent", "The WebUI was started anew; reload this page.")
        hands.page.unroute("**/dreambooth/page/live*")
        hands.page.wait_for_function("() => !document.querySelector('.db-silent')", timeout=30_000)
        statuses.pop(0)
    hands.page.close()
