"""Learning on from a result by one press: the controls show what the next run begins with."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from dreambooth.core import job_folder, job_list, project
from dreambooth.core.project import Folders, open_project
from dreambooth.core.settings import Settings
from dreambooth.ui.page.run_view import run_view
from tests.ui.page.conftest import Server
from tests.ui.page.hands import Hands


def ran(folders: Folders) -> tuple[job_folder.Job, Path]:
    """A run that is under way, and the LoRA that it has written."""
    made = project.create(folders, "star", folders.checkpoints / "miniature.safetensors", {})
    job, path = job_list.new_run(folders, made, Settings()), folders.loras / "star_10.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    job.report("started")
    job.report("saved", kind="lora", path=str(path), bytes=0, images=10)
    return job, path


def test_one_press_has_the_next_run_begin_with_a_result(browser: Any, server: Server, data: Path) -> None:
    folders = Folders(data)
    job, path = ran(folders)
    with job.hold():  # type: ignore[union-attr]
        assert "learn-on" not in run_view(folders, "star"), "while it learns it has the settings that it began with"
    job.report("done")
    hands = Hands(browser, server.address)
    hands.see("#db_page [data-db-send$='/learn-on']").click()
    hands.see(".db-done", f"The next run of star learns on from {path.name}.")
    assert open_project(folders, "star").settings()["lora.start_file"] == str(path)
    hands.tab("Settings")
    hands.unfold("db_section_lora")
    until = time.monotonic() + 20
    while hands.value("db_lora_start_file") != str(path):
        assert time.monotonic() < until
        time.sleep(0.1)
    path.unlink()
    hands.page.close()


def test_a_result_that_is_gone_meanwhile_is_told(browser: Any, server: Server, data: Path) -> None:
    path = Folders(data).loras / "star_10.safetensors"  # of the run before
    path.touch()
    hands = Hands(browser, server.address)
    button = hands.see("#db_page [data-db-send$='/learn-on']")
    path.unlink()
    button.click()
    hands.see(".db-refused", "it is gone")
    assert hands.errors == []
    hands.page.close()


def test_a_webui_that_does_not_answer_a_press_is_told_of(browser: Any, server: Server, data: Path) -> None:
    path = Folders(data).loras / "star_10.safetensors"
    path.touch()
    hands = Hands(browser, server.address)
    button = hands.see("#db_page [data-db-send$='/learn-on']")
    hands.page.route("**/learn-on", lambda route: route.abort())
    button.click()
    hands.see(".db-refused", "The WebUI does not answer; try again when it does.")
    hands.page.route("**/learn-on", lambda route: route.fulfill(status=502, body="<html>Bad Gateway</html>"))
    button.click()
    hands.see(".db-refused", "The WebUI answered with an error (502).")
    path.unlink()
    hands.page.close()
