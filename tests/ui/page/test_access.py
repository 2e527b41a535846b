"""The page for a keyboard, a screen reader and a small window."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dreambooth.core import project
from dreambooth.core.layout import MINIATURE, SUBJECT_PICTURES
from dreambooth.core.project import Folders
from tests.ui.page.conftest import Server
from tests.ui.page.hands import Hands

TABS = ("Model", "Settings", "Concepts", "Generate")

# The fields and buttons in view that nothing names.
NAMELESS = """() => [...document.querySelectorAll("#db_page :is(input, textarea, select, button, a[href])")]
    .filter(one => one.offsetParent !== null && one.type !== "file")
    .filter(one => ![...(one.labels || [])].some(label => label.textContent.trim()) && !one.ariaLabel && !one.title
        && !one.getAttribute("aria-labelledby") && !one.textContent.trim() && !one.closest("label")?.textContent.trim()
        && !one.querySelector("img[alt]"))
    .map(one => one.outerHTML.slice(0, 160))"""

# What sticks out to the right, but for what scrolls by itself.
TOO_WIDE = """() => [...document.querySelectorAll("#db_page *")]
    .filter(one => one.checkVisibility() && !one.closest(".db-sheet, pre, svg, .tab-container, .tab-nav"))
    .filter(one => one.getBoundingClientRect().right > window.innerWidth + 1)
    .map(one => one.outerHTML.slice(0, 160))"""


@pytest.fixture(scope="module", params=[1280, 400])
def hands(request: pytest.FixtureRequest, browser: Any, server: Server, data: Path) -> Iterator[Hands]:
    own = {"concepts.0.instance_data_dir": str(SUBJECT_PICTURES), "concepts.0.instance_prompt": "a [filewords]"}
    if "star" not in project.names(Folders(data)):
        project.create(Folders(data), "star", MINIATURE, own)
    yield Hands(browser, server.address, request.param)


def unfolded(hands: Hands, tab: str) -> None:
    hands.tab(tab)
    folded = hands.page.locator(f"#db_{tab.lower()}_tab .label-wrap:not(.open)")
    while folded.count():
        folded.first.click()


@pytest.mark.parametrize("tab", TABS)
def test_everything_has_a_name_and_nothing_sticks_out(hands: Hands, tab: str) -> None:
    unfolded(hands, tab)
    hands.page.wait_for_timeout(500)
    assert hands.page.evaluate(NAMELESS) == []
    assert hands.page.evaluate(TOO_WIDE) == []


def test_what_has_no_name_or_is_too_wide_would_be_found(hands: Hands) -> None:
    add = "html => document.querySelector('#db_page').insertAdjacentHTML('beforeend', html)"
    hands.page.evaluate(add, "<input id='db_nameless' style='width: 3000px; position: relative; display: block'>")
    assert "db_nameless" in hands.page.evaluate(NAMELESS)[0]
    assert "db_nameless" in hands.page.evaluate(TOO_WIDE)[0]
    hands.page.evaluate("document.querySelector('#db_nameless').remove()")


def test_the_run_stays_in_view(hands: Hands) -> None:
    """Beside the tabs where there is room; above them in a small window."""
    hands.tab("Settings")
    unfolded(hands, "Settings")
    hands.page.evaluate("window.scrollTo(0, 1500)")
    hands.page.wait_for_timeout(300)
    top = hands.page.evaluate("document.querySelector('#db_run_column').getBoundingClientRect().top")
    assert (0 <= top < 100) == (hands.page.viewport_size["width"] > 900)


def test_the_keyboard_reaches_the_fields_and_presses_the_buttons(hands: Hands) -> None:
    hands.tab("Model")
    unfolded(hands, "Model")
    hands.page.locator("#db_new_name :is(textarea, input)").first.focus()
    reached = set()
    for _ in range(60):
        hands.page.keyboard.press("Tab")
        reached.add(hands.page.evaluate("document.activeElement.closest('[id^=db_]')?.id || ''"))
        if "db_create" in reached:
            break
    assert "db_create" in reached
    hands.page.keyboard.press("Enter")
    hands.see("#db_create_said", "Name: it is empty")


def test_the_script_had_no_errors(hands: Hands) -> None:
    assert hands.errors == []
