"""The script that fills a WebUI's txt2img, on a page with the parts of one that it touches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from dreambooth.core.install_paths import PROJECT

_WEBUI = """
<div id="tab_txt2img"><div id="txt2img_prompt"><textarea></textarea></div><button id="paste"></button></div>
<button class="result" data-db-use data-db-prompt="a star <lora:star:1>" data-db-checkpoint=""></button>
<button class="checkpoint" data-db-use data-db-prompt="a star" data-db-checkpoint="star.safetensors"></button>
<button class="picture" data-db-use data-db-prompt="a star" data-db-checkpoint="" data-db-parameters="a star
Steps: 3, Seed: 7, CFG scale: 7"></button>
<script>
const said = [];
const field = document.querySelector("textarea");
field.addEventListener("input", () => said.push(["wrote", field.value]));
document.querySelector("#paste").addEventListener("click", () => said.push(["read", field.value]));
function gradioApp() { return document; }
function selectCheckpoint(name) { said.push(["checkpoint", name]); }
function switch_to_txt2img() { said.push(["shown"]); }
</script>
"""


@pytest.fixture
def webui(browser: Any) -> Iterator[Any]:
    page = browser.new_page()
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.set_content(_WEBUI)
    page.add_script_tag(path=str(PROJECT / "javascript" / "hot_use.js"))
    yield page
    page.close()


def said(page: Any, button: str) -> list[list[str]]:
    page.locator(f"button.{button}").click(force=True)
    assert page.errors == []
    return list(page.evaluate("said"))


def test_a_result_puts_its_prompt_there(webui: Any) -> None:
    assert said(webui, "result") == [["wrote", "a star <lora:star:1>"], ["shown"]]


def test_a_checkpoint_is_chosen_too(webui: Any) -> None:
    assert said(webui, "checkpoint") == [["wrote", "a star"], ["checkpoint", "star.safetensors"], ["shown"]]


def test_how_a_picture_was_drawn_is_read_by_the_webui_itself(webui: Any) -> None:
    parameters = "a star\nSteps: 3, Seed: 7, CFG scale: 7"
    assert said(webui, "picture") == [["wrote", parameters], ["read", parameters], ["shown"]]


def test_a_webui_that_reads_no_parameters_gets_the_prompt(webui: Any) -> None:
    webui.evaluate("document.querySelector('#paste').remove()")
    assert said(webui, "picture") == [["wrote", "a star"], ["shown"]]
