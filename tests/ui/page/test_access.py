"""The page for a keyboard, a screen reader and a small window."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dreambooth.core import project
from dreambooth.core.install_paths import MINIATURE, SUBJECT_PICTURES
from dreambooth.core.project import Folders
from tests.ui.page.conftest import Server
from tests.ui.page.contrast import FAINT
from tests.ui.page.hands import Hands

TABS = ("Model", "Settings", "Concepts", "Generate")

# What a screen reader calls by its name.
NAMED = {"button", "textbox", "combobox", "checkbox", "radio", "radiogroup", "group", "slider", "spinbutton", "tab",
         "link", "searchbox", "listbox", "progressbar", "meter", "img"}  # fmt: skip

# The fields and buttons in view that nothing names.
NAMELESS = """() => [...document.querySelectorAll("#db_page :is(input, textarea, select, button, a[href])")]
    .filter(one => one.offsetParent !== null && one.type !== "file")
    .filter(one => ![...(one.labels || [])].some(label => label.textContent.trim()) && !one.ariaLabel && !one.title
        && !one.getAttribute("aria-labelledby") && !one.textContent.trim() && !one.closest("label")?.textContent.trim()
        && !one.querySelector("img[alt]"))
    .map(one => one.outerHTML.slice(0, 160))"""

# What sticks out to the right, but for what scrolls by itself.
TOO_WIDE = """() => [...document.querySelectorAll("#db_page *")]
    .filter(one => one.checkVisibility() && !one.closest(".db-sheet, .db-runs, pre, svg, .tab-container, .tab-nav"))
    .filter(one => one.getBoundingClientRect().right > window.innerWidth + 1)
    .map(one => one.outerHTML.slice(0, 160))"""


@pytest.fixture(scope="module", params=[1280, 400])
def hands(request: pytest.FixtureRequest, browser: Any, server: Server, data: Path) -> Iterator[Hands]:
    own = {"concepts.0.instance_data_dir": str(SUBJECT_PICTURES), "concepts.0.instance_prompt": "a [filewords]"}
    own["general.seed"] = 7  # marked as changed
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


@pytest.mark.parametrize("dark", [False, True])
def test_a_screen_reader_has_a_name_for_everything_and_weak_eyes_can_read_it(
    browser: Any, server: Server, hands: Hands, dark: bool
) -> None:
    if hands.page.viewport_size["width"] < 900:
        pytest.skip("names and colours are the same in every width")
    opened = Hands(browser, server.address, dark=dark)
    for tab in TABS:
        unfolded(opened, tab)
        if tab == "Settings":
            opened.write("db_general_seed", "-3")
            opened.see("#db_general_seed .db-sentence")
            opened.see("#db_page .db-reset")
        opened.page.wait_for_timeout(800)
        assert opened.page.evaluate(FAINT) == [], tab
        tree = opened.page.context.new_cdp_session(opened.page).send("Accessibility.getFullAXTree")
        controls = [node for node in tree["nodes"] if not node["ignored"] and node["role"]["value"] in NAMED]
        assert len(controls) > 10
        nameless = [node for node in controls if not node.get("name", {}).get("value", "").strip()]
        assert [described(opened, node) for node in nameless] == [], tab
    opened.page.close()


def described(hands: Hands, node: dict[str, Any]) -> str:
    session = hands.page.context.new_cdp_session(hands.page)
    session.send("DOM.enable")
    session.send("DOM.getDocument")
    found = session.send("DOM.describeNode", {"backendNodeId": node["backendDOMNodeId"]})["node"]
    return f"{node['role']['value']} {found['localName']} {found['attributes']}"


def test_faint_text_would_be_found(hands: Hands) -> None:
    add = "html => document.querySelector('#db_page').insertAdjacentHTML('beforeend', html)"
    hands.page.evaluate(add, "<p id='db_faint' style='color: #999; background: #fff'>hard to read</p>")
    assert "2.85: hard to read" in hands.page.evaluate(FAINT)[0]
    hands.page.evaluate("document.querySelector('#db_faint').remove()")


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


class Keyboard:
    """A person without a mouse."""

    def __init__(self, hands: Hands) -> None:
        self.hands, self.keys = hands, hands.page.keyboard

    def reach(self, selector: str, *, back: bool = False) -> None:
        for _ in range(150):
            self.keys.press("Shift+Tab" if back else "Tab")
            if self.hands.page.evaluate("one => document.activeElement.matches(one)", selector):
                return
        raise AssertionError(f"the keyboard does not reach {selector}")

    def write(self, name: str, text: str) -> None:
        self.reach(f"#{name} :is(input, textarea)")
        self.keys.type(text)

    def press(self, name: str) -> None:
        self.reach(f"#{name}, #{name} *")
        self.keys.press("Enter")

    def tab(self, name: str) -> None:
        """Back to the row of tabs, and along it."""
        for _ in range(150):
            self.keys.press("Shift+Tab")
            words = self.hands.page.evaluate("document.activeElement.closest('button')?.innerText")
            if words and words.strip() == name:
                self.keys.press("Enter")
                self.hands.see(f"#db_{name.lower()}_tab")
                return
        raise AssertionError(f"the keyboard does not reach the tab {name}")


def test_a_model_is_made_ready_to_train_with_the_keyboard_alone(browser: Any, server: Server, hands: Hands) -> None:
    if hands.page.viewport_size["width"] < 900:
        pytest.skip("the keyboard is the same in every width")
    person = Keyboard(Hands(browser, server.address))
    person.tab("Model")
    person.reach("#db_create_section .label-wrap")
    if not person.hands.page.locator("#db_new_name").is_visible():
        person.keys.press("Enter")
    person.write("db_new_name", "by-keys")
    person.press("db_create")
    person.hands.see("#db_said", "Created by-keys")
    person.tab("Concepts")
    person.write("db_concepts_N_instance_data_dir", str(SUBJECT_PICTURES))
    person.reach("#db_drop *")
    person.write("db_concepts_N_instance_prompt", "a photo of [filewords]")
    person.hands.saved()  # until the page looks up what has changed elsewhere
    person.press("db_section_class .label-wrap")
    person.reach("#db_section_class :is(input, textarea)")
    person.reach("#db_pictures textarea")
    person.reach("#db_train, #db_train *")
    person.hands.see("#db_about", "5 pictures")
    assert person.hands.errors == []
    person.hands.page.close()


def test_the_script_had_no_errors(hands: Hands) -> None:
    assert hands.errors == []
