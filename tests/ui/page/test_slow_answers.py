"""A WebUI far away, or a busy one: what is changed while the page waits for an answer is not lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dreambooth.core import project
from dreambooth.core.project import Folders, open_project
from tests.ui.page.conftest import Server
from tests.ui.page.hands import Hands

LATE_MS = 2_500
SAVES_MS = 1_200  # after a change; the page waits for half of it


def test_what_is_changed_while_a_change_is_saved_is_saved_too(browser: Any, server: Server, data: Path) -> None:
    made = project.create(Folders(data), "star", data / "Stable-diffusion" / "miniature.safetensors", {})
    hands = Hands(browser, server.address)
    hands.tab("Concepts")
    hands.see("#db_concepts_N_instance_prompt")
    hands.page.wait_for_timeout(1000)
    saves: list[str] = []

    def late(route: Any) -> None:
        if route.request.method == "POST":
            saves.append(route.request.url)
            if len(saves) == 1:
                hands.page.wait_for_timeout(LATE_MS)
        route.continue_()

    hands.page.route("**/gradio_api/**", late)  # gradio 5 and later
    hands.page.route("**/run/**", late)
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
