"""Does what docs/guide.md says, as somebody who is there for the first time, and counts: clicks, fields, minutes.

The command is `python -m tests.ui.page.first_time`, with the page's Python (.page). It starts from nothing but the
miniature among the checkpoints and five pictures on the disk, and ends with a picture of what was taught.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from dreambooth.core.install_paths import SUBJECT_PICTURES
from tests.ui.page.conftest import Server, chromium, models_folder
from tests.ui.page.hands import Hands

RUN_MS = 1_200_000


class Counting:
    """A person whose every click and every field that is written is counted."""

    def __init__(self, hands: Hands) -> None:
        self.hands, self.clicks, self.fields = hands, 0, 0
        self.began = time.monotonic()

    def tab(self, name: str) -> None:
        self.hands.tab(name)
        self.clicks += 1

    def press(self, name: str) -> None:
        self.hands.press(name)
        self.clicks += 1

    def write(self, name: str, text: str) -> None:
        self.hands.write(name, text)
        self.fields += 1

    def told(self, what: str) -> None:
        minutes = (time.monotonic() - self.began) / 60
        print(f"{what}: {self.clicks} clicks, {self.fields} fields, {minutes:.1f} minutes", flush=True)


def first_time(hands: Hands) -> None:
    person = Counting(hands)
    person.write("db_new_name", "my-star")
    person.press("db_create")
    hands.state("none")
    person.tab("Concepts")
    hands.drop("db_drop", [str(file) for file in sorted(SUBJECT_PICTURES.iterdir())])
    person.clicks += 1  # a drop
    hands.see("#db_said", "The pictures are in")
    person.write("db_concepts_N_instance_prompt", "a photo of sks star")
    hands.saved()
    person.tab("Settings")
    hands.unfold("db_section_learning")
    person.clicks += 1
    person.write("db_learning_lora_learning_rate", "0.003")  # the miniature learns quickly; a real model keeps 0.0001
    hands.saved()
    person.press("db_train")
    hands.state("running", RUN_MS)
    person.told("until it trains")
    hands.state("done", RUN_MS)
    person.told("until it is done")
    person.tab("Generate")
    person.write("db_prompt", "a photo of sks star on a blue background")
    person.press("db_draw")
    hands.see("#db_drawn img >> nth=3", wait_ms=RUN_MS)
    person.told("until there are pictures")


def main() -> None:
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as place, sync_playwright() as started:
        data = models_folder(Path(place))
        server = Server(data)
        browser = started.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        try:
            first_time(Hands(browser, server.address))
        finally:
            browser.close()
            server.end()


if __name__ == "__main__":
    main()
