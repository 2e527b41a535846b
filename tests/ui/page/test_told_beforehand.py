"""With a browser what is told before anything is made: what a file is, and which word to take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dreambooth.core import job_list, project
from dreambooth.core.install_paths import MINIATURE
from dreambooth.core.project import Folders
from tests.ui.page.conftest import Server
from tests.ui.page.hands import Hands
from tests.ui.page.test_file_view import lora


def test_a_source_that_is_chosen_and_a_lora_that_is_named_are_told(browser: Any, server: Server, data: Path) -> None:
    file = lora(data / "Lora" / "theirs.safetensors", 2048)
    project.create(Folders(data), "star", MINIATURE, {"lora.start_file": str(file)})
    hands = Hands(browser, server.address)
    hands.unfold("db_create_section")
    assert not hands.page.locator("#db_source_about p").count()
    hands.write("db_new_name", "other")
    hands.see("#db_source_about", "Stable Diffusion 1 · epsilon · 64 px")
    hands.write("db_new_source", str(file))
    hands.see("#db_source_about .db-problems", "this is a LoRA, not a whole model")
    hands.tab("Settings")
    hands.unfold("db_section_lora")
    hands.see("#db_lora_start .db-problems", "It is of SDXL")
    hands.write("db_lora_start_file", "")
    hands.page.locator("#db_lora_start p").first.wait_for(state="detached")
    assert hands.errors == []
    hands.page.close()


def test_the_model_says_how_it_reads_a_word(browser: Any, server: Server, data: Path) -> None:
    own = {"concepts.0.instance_prompt": "a photo of red star", "concepts.0.class_prompt": "a photo of a star"}
    project.create(Folders(data), "moon", MINIATURE, own)
    hands = Hands(browser, server.address)
    hands.tab("Concepts")
    hands.unfold("db_section_words")
    hands.write("db_words", "red star")
    hands.press("db_words_look")
    hands.see("#db_words_known td", "means something", wait_ms=240_000)
    hands.see("#db_words_known .db-note", "red means something to this model already")
    (asked,) = job_list.errands(project.open_project(Folders(data), "moon"))
    assert asked.read()["prompt"] == "red star"
    assert hands.errors == []
    hands.page.close()
