"""What a person does on the page, in words that hold for every gradio."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

WAIT_MS = 60_000
MADE_MS = 1_000


class Hands:
    """A person with the page open. Errors of the page's own script are collected in `errors`."""

    def __init__(self, browser: Any, address: str, width: int = 1280, height: int = 900, *, dark: bool = False) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": height})
        self.page.set_default_timeout(WAIT_MS)
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.address = f"{address}/?__theme={'dark' if dark else 'light'}"
        self.open()

    def open(self) -> None:
        self.page.goto(self.address)
        self.see("#db_page[data-db-state]")

    def see(self, selector: str, text: str | None = None, wait_ms: int = WAIT_MS) -> Any:
        """Waits until something is in view, with some text if given; else raises AssertionError, with a picture."""
        found = self.page.locator(selector, has_text=text).first if text else self.page.locator(selector).first
        try:
            found.wait_for(state="visible", timeout=wait_ms)
        except Exception as error:  # playwright's own, which not every environment has
            picture = Path(tempfile.mkdtemp(prefix="unseen-")) / "page.png"
            self.page.screenshot(path=picture)
            there = [one.inner_text() for one in self.page.locator(selector).all()]
            raise AssertionError(f"{selector} {text or ''}: {there}, {self.errors}, see {picture}") from error
        return found

    def tab(self, name: str) -> None:
        self.page.locator("#db_tabs > .tab-nav button, #db_tabs button[role=tab]").filter(has_text=name).first.click()

    def press(self, name: str) -> None:
        self.page.locator(f"button#{name}, #{name} button").first.click()

    def write(self, name: str, text: str) -> None:
        field = self.page.locator(f"#{name} textarea, #{name} input:not([type=range])").first
        field.fill(text)
        field.blur()

    def value(self, name: str) -> str:
        return str(self.page.locator(f"#{name} textarea, #{name} input:not([type=range])").first.input_value())

    def holds(self, name: str, text: str) -> None:
        """Waits until a field holds a text: lists of pictures and runs are drawn sooner than the settings are."""
        wanted = "([name, text]) => document.querySelector(`#${name} textarea, #${name} input`)?.value === text"
        self.page.wait_for_function(wanted, arg=[name, text])

    def choose(self, name: str, option: str) -> None:
        field = self.page.locator(f"#{name} input").first
        field.click()
        field.fill(option)
        self.page.locator("ul.options li, [role=option]").filter(has_text=option).first.click()

    def unfold(self, section: str) -> None:
        """Opens a section. Gradio 6 makes its fields then, and gives each its first value twice: what is written in
        between, sooner than a person could, would be lost."""
        self.page.locator(f"#{section} .label-wrap").first.click()
        self.page.wait_for_timeout(MADE_MS)

    def drop(self, name: str, files: list[str]) -> None:
        self.page.locator(f"#{name} input[type=file]").first.set_input_files(files)

    def state(self, wanted: str, wait_ms: int = WAIT_MS) -> None:
        self.see(f'#db_page[data-db-state="{wanted}"]', wait_ms=wait_ms)

    def saved(self) -> None:
        """Waits until the page says that the settings are saved."""
        self.see('#db_page:not([data-db-unsaved="true"]) .db-saved', "Saved")

    def problem(self, name: str) -> str:
        """The sentence under a control."""
        return str(self.see(f"#{name} .db-sentence").inner_text())
