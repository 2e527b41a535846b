"""Deleting a result beside it: one press asks, the second deletes, and what hangs on results is read anew."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from dreambooth.core import job_list, project, result_files
from dreambooth.core.project import Folders
from dreambooth.core.settings import Settings
from dreambooth.ui.page.model_view import model_view
from dreambooth.ui.page.run_view import run_view
from tests.ui.page.conftest import Server
from tests.ui.page.hands import Hands


def ran(folders: Folders) -> list[Path]:
    """A run that has written two LoRAs."""
    made = project.create(folders, "star", folders.checkpoints / "miniature.safetensors", {})
    job, paths = job_list.new_run(folders, made, Settings()), [folders.loras / f"star_{n}.safetensors" for n in (5, 10)]
    folders.loras.mkdir(parents=True, exist_ok=True)
    job.report("started")
    for images, path in zip((5, 10), paths):
        path.write_bytes(bytes(images))
        marks = result_files.marks([path])
        job.report("saved", kind="lora", path=str(path), bytes=images, images=images, files=marks)
    job.report("done")
    return paths


def until(is_so: Any) -> None:
    end = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_two_presses_delete_a_result_and_one_does_not(browser: Any, server: Server, data: Path) -> None:
    folders = Folders(data)
    first, last = ran(folders)
    hands = Hands(browser, server.address)
    hands.tab("Generate")
    until(lambda: hands.value("db_weights").startswith(last.name))
    button = f"#db_run .db-delete[aria-label='Delete {last.name} for good']"
    hands.see(button, "Delete").click()
    hands.see(button, "Press again: delete")
    assert last.exists()
    hands.see(button).click()
    hands.see("#db_run .db-done", f"{last.name} is deleted, which freed")
    until(lambda: not last.exists() and not hands.page.locator(button).count())
    until(lambda: hands.value("db_weights").startswith(first.name))
    hands.tab("Model")
    until(lambda: hands.page.locator("#db_tabs .db-delete").count() == 1)
    tile = hands.see("#db_tabs .db-delete")  # of the other, among the model's results
    first.write_bytes(b"another")
    tile.click()
    tile.click()
    hands.see("#db_tabs .db-refused", "delete it yourself")
    assert first.exists() and hands.errors == []
    hands.page.close()


def test_a_double_click_and_a_held_key_are_one_press(browser: Any, server: Server, data: Path) -> None:
    folders = Folders(data)
    project.create(folders, "earth", folders.checkpoints / "miniature.safetensors", {})
    hands = Hands(browser, server.address)
    hands.unfold("db_change_section")
    button = hands.page.locator("button#db_delete, #db_delete button").first
    button.dblclick()
    hands.see("#db_delete", "Press again")
    hands.page.wait_for_timeout(1000)
    assert "earth" in project.names(folders)
    button.click()
    hands.see("#db_said", "earth is in the trash")
    hands.see("#db_delete", "Move to the trash")
    project.create(folders, "mars", folders.checkpoints / "miniature.safetensors", {})
    hands.open()
    hands.unfold("db_change_section")
    button.focus()
    for _ in range(3):  # without an "up" in between the second and third are those of a held key
        hands.page.keyboard.down("Enter")
    hands.page.keyboard.up("Enter")
    hands.see("#db_delete", "Press again")
    hands.page.wait_for_timeout(1000)
    assert "mars" in project.names(folders) and hands.errors == []
    hands.page.close()


def test_a_third_press_asks_again(browser: Any, server: Server, data: Path) -> None:
    """It is about the next model by then."""
    folders = Folders(data)
    for name in ("moon", "sun"):
        project.create(folders, name, folders.checkpoints / "miniature.safetensors", {})
    hands = Hands(browser, server.address)
    hands.unfold("db_change_section")
    hands.press("db_delete")
    hands.see("#db_delete", "Press again")
    hands.press("db_delete")
    hands.see("#db_said", "sun is in the trash")
    hands.see("#db_delete", "Move to the trash")
    hands.press("db_delete")
    hands.see("#db_delete", "Press again")
    hands.page.wait_for_timeout(1000)
    assert "moon" in project.names(folders) and hands.errors == []
    hands.page.close()


def test_only_what_lies_where_results_go_has_the_button(data: Path) -> None:
    folders = Folders(data)
    job, elsewhere = job_list.find(folders, "star"), data / "elsewhere.safetensors"
    there = len(list(folders.loras.iterdir()))
    elsewhere.touch()
    job.report("exported", kind="lora", path=str(elsewhere), bytes=0, images=3, step=3)
    for view in (run_view, model_view):
        shown = view(folders, "star")
        assert "elsewhere" in shown
        assert shown.count("db-delete") == shown.count("outputs/delete") == shown.count("data-db-twice") == there
