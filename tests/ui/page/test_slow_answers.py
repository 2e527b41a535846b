"""A WebUI far away, or a busy one: what is changed while the page waits for an answer is not lost."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from PIL import Image

from dreambooth.core import job_list, project
from dreambooth.core.install_paths import SUBJECT_PICTURES
from dreambooth.core.project import Folders, open_project
from dreambooth.core.settings import Settings
from tests.ui.page.conftest import Server
from tests.ui.page.hands import Hands
from tests.ui.page.test_browser import until
from tests.ui.page.test_file_view import lora

LATE_MS = 2_500
IDLE_MS = 4_000  # between two looks where nothing runs
SAVES_MS = 1_200  # after a change; the page waits for half of it


def late_answers(hands: Hands) -> list[str]:
    """Has the first thing that the page asks Python for from now on answered late. Returns what it asks for."""
    asked: list[str] = []

    def late(route: Any) -> None:
        if route.request.method == "POST" and "upload" not in route.request.url:
            asked.append(route.request.url)
            if len(asked) == 1:
                hands.page.wait_for_timeout(LATE_MS)
        route.continue_()

    hands.page.route("**/gradio_api/**", late)  # gradio 5 and later
    hands.page.route("**/run/**", late)
    return asked


def test_what_is_changed_while_a_change_is_saved_is_saved_too(browser: Any, server: Server, data: Path) -> None:
    made = project.create(Folders(data), "star", data / "Stable-diffusion" / "miniature.safetensors", {})
    hands = Hands(browser, server.address)
    hands.tab("Concepts")
    hands.see("#db_concepts_N_instance_prompt")
    hands.page.wait_for_timeout(1000)
    saves = late_answers(hands)
    hands.write("db_concepts_N_instance_prompt", "a photo of one")
    hands.page.wait_for_timeout(SAVES_MS)
    assert len(saves) == 1
    hands.write("db_concepts_N_class_prompt", "a photo of another")
    hands.page.wait_for_timeout(LATE_MS)
    hands.saved()
    hands.page.unroute_all(behavior="wait")
    settings = open_project(Folders(data), made.name).settings()
    assert (settings["concepts.0.instance_prompt"], settings["concepts.0.class_prompt"]) == (
        "a photo of one",
        "a photo of another",
    )
    assert hands.errors == []
    hands.page.close()


def test_of_settings_that_are_put_back_one_after_the_other_none_is_left_out(
    browser: Any, server: Server, data: Path
) -> None:
    own = {"general.seed": 7, "intervals.num_train_epochs": 8, "intervals.save_preview_every": 9}
    made = project.create(Folders(data), "moon", data / "Stable-diffusion" / "miniature.safetensors", own)
    hands = Hands(browser, server.address)
    hands.tab("Settings")
    hands.see("#db_defaults", "3 changed from the defaults")
    late_answers(hands)
    for key in own:
        hands.see(f"#db_{key.replace('.', '_')} .db-reset").click()
        hands.page.wait_for_timeout(LATE_MS / 5)
    hands.see("#db_defaults", "All at their defaults")
    hands.page.unroute_all(behavior="wait")
    settings = open_project(Folders(data), made.name).settings()
    assert not {key for key, value in own.items() if settings[key] == value} and hands.errors == []
    hands.page.close()


def test_pictures_that_are_dropped_while_others_are_taken_in_are_not_lost(
    browser: Any, server: Server, data: Path, tmp_path: Path
) -> None:
    project.create(Folders(data), "sun", data / "Stable-diffusion" / "miniature.safetensors", {})
    files = [str(tmp_path / f"{name}.png") for name in "abc"]
    for file in files:
        Image.new("RGB", (64, 64), "gold").save(file)
    hands = Hands(browser, server.address)
    hands.tab("Concepts")
    hands.see("#db_concepts_N_instance_prompt")
    hands.page.wait_for_timeout(1000)
    asked = late_answers(hands)
    hands.drop("db_drop", files[:1])
    until(lambda: hands.page.wait_for_timeout(100) or asked)
    hands.drop("db_drop", files[1:])
    hands.see("#db_pictures h4", "3 pictures")
    hands.page.unroute_all(behavior="wait")
    assert hands.errors == []
    hands.page.close()


def test_a_source_that_is_named_before_another_was_told_of_is_told_of(browser: Any, server: Server, data: Path) -> None:
    file, held = lora(data / "Lora" / "theirs.safetensors", 2048), list[Any]()
    project.create(Folders(data), "five", data / "Stable-diffusion" / "miniature.safetensors", {})
    hands = Hands(browser, server.address)
    hands.unfold("db_create_section")
    hands.page.route(re.compile("gradio_api|/run/"), lambda asked: held.append(asked))
    hands.choose("db_new_source", "miniature")
    until(lambda: hands.page.wait_for_timeout(100) or held)
    hands.write("db_new_source", str(file))
    hands.page.wait_for_timeout(SAVES_MS)
    hands.page.unroute_all()  # they go on
    hands.see("#db_source_about .db-problems", "this is a LoRA, not a whole model")
    assert hands.errors == []
    hands.page.close()


def test_a_late_look_at_everything_empties_no_newer_message(browser: Any, server: Server, data: Path) -> None:
    project.create(Folders(data), "six", data / "Stable-diffusion" / "miniature.safetensors", {})
    hands, held = Hands(browser, server.address), list[Any]()
    hands.see("#db_train")
    hands.page.route(re.compile("gradio_api|/run/"), lambda asked: asked.continue_() if held else held.append(asked))
    hands.press("db_refresh")
    until(lambda: hands.page.wait_for_timeout(100) or held)
    hands.press("db_train")
    hands.see("#db_run_said .db-problems", "Dataset Directory")
    with hands.page.expect_response(held[0].request.url):
        held[0].continue_()
    hands.page.wait_for_timeout(1000)
    assert hands.page.locator("#db_run_said .db-problems").count()
    hands.press("db_refresh")
    hands.page.locator("#db_run_said .db-problems").wait_for(state="detached")
    assert hands.errors == []
    hands.page.close()


def test_a_slow_view_keeps_no_other_waiting(browser: Any, server: Server, data: Path) -> None:
    """Pictures of a kind that only the engine reads take it a minute."""
    own = {"concepts.0.instance_data_dir": str(SUBJECT_PICTURES), "concepts.0.instance_prompt": "a sks star"}
    project.create(Folders(data), "slow", data / "Stable-diffusion" / "miniature.safetensors", own)
    hands = Hands(browser, server.address)
    late: list[Any] = []
    hands.page.route("**/page/live?view=pictures*", lambda route: late.append(route))
    hands.tab("Concepts")
    hands.page.wait_for_timeout(1000)
    looked = [0]
    hands.page.on("request", lambda asked: looked.append(looked[-1] + ("view=run" in asked.url)))
    hands.page.wait_for_timeout(2 * IDLE_MS)
    assert looked[-1] >= 2, "the run is looked at on and on"
    assert len(late) == 1, "the pictures are asked for once until the answer comes"
    hands.page.evaluate("dreamboothPage.look()")
    hands.page.wait_for_timeout(SAVES_MS)
    assert len(late) == 1
    late[0].continue_()
    hands.see("#db_pictures .db-tile")
    hands.page.wait_for_timeout(IDLE_MS / 4)
    assert len(late) == 2, "what was to be looked at meanwhile is looked at now"
    late[1].continue_()
    assert hands.errors == []
    hands.page.close()


def test_a_late_answer_about_another_model_changes_no_buttons(browser: Any, server: Server, data: Path) -> None:
    folders = Folders(data)
    made = [project.create(folders, name, folders.checkpoints / "miniature.safetensors", {}) for name in ("one", "two")]
    job = job_list.new_run(folders, made[1], Settings())
    for event in ("started", "paused"):
        job.report(event)
    hands, late = Hands(browser, server.address), list[Any]()
    hands.choose("db_model", "two")
    hands.state("paused")
    hands.page.route("**/page/live?view=run&model=two*", lambda route: late.append(route))
    until(lambda: hands.page.wait_for_timeout(100) or late)
    hands.choose("db_model", "one")
    hands.state("none")
    with hands.page.expect_response("**/page/live?view=run&model=two*"):
        late[0].continue_()
    hands.page.wait_for_timeout(500)
    hands.state("none", wait_ms=100)
    assert hands.errors == []
    hands.page.close()
